// The host side of sampling: its inputs, its threads, and the restriction of draws.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "shared/glibc.h"
#include "host/library.h"

namespace vqfast {
namespace {

// Sets the logits (choices) that top_k and top_p leave out to -inf, as vqfast/sampling/draw.py defines it. Logits with
// a NaN stay as they are, for the draw to report. scratch: K numbers of 8 bytes.
void restrict_to(const SamplerProblem& s, double* logits, void* scratch) {
  const int64_t k = s.choices();
  double* sorted = static_cast<double*>(scratch);
  auto* order = static_cast<int64_t*>(scratch);
  if (std::any_of(logits, logits + k, [](double x) { return x != x; })) return;
  if (s.top_k > 0 && s.top_k < k) {
    std::copy(logits, logits + k, sorted);
    std::nth_element(sorted, sorted + s.top_k - 1, sorted + k, [](double a, double b) { return a > b; });
    const double smallest = sorted[s.top_k - 1];
    std::replace_if(logits, logits + k, [=](double x) { return x < smallest; }, -__builtin_inf());
  }
  if (s.top_p >= 1 || s.temperature <= 0) return;
  for (int64_t i = 0; i < k; ++i) order[i] = i;
  std::sort(order, order + k, [=](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  const double highest = logits[order[0]];
  double total = 0, before = 0;
  for (int64_t i = 0; i < k; ++i) total += __builtin_exp((logits[order[i]] - highest) / s.temperature);
  for (int64_t i = 0; i < k; ++i) {
    const double p = __builtin_exp((logits[order[i]] - highest) / s.temperature) / total;
    if (i > 0 && before >= s.top_p) logits[order[i]] = -__builtin_inf();
    before += p;
  }
}

// steps, terms, taps, attentions and sizes: int64, the fields of Step, Term, Tap, Attention and SamplerSizes
// (contract.def). The tensors outlive the problem.
SamplerProblem problem_of(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& attentions, const Tensor& sizes,
    const std::vector<Tensor>& weights) {
  SamplerProblem s{};
  static_cast<SamplerSizes&>(s) = *static_cast<const SamplerSizes*>(sizes.const_data_ptr());
  s.precision = precision_of(weights.front());
  s.steps = static_cast<const Step*>(steps.const_data_ptr());
  s.terms = static_cast<const Term*>(terms.const_data_ptr());
  s.taps = static_cast<const Tap*>(taps.const_data_ptr());
  s.attentions = static_cast<const Attention*>(attentions.const_data_ptr());
  s.num_steps = steps.size(0);
  return s;
}

// Asks for large pages. What a long row's taps read lies far apart: each on a page of its own, whose address takes as
// long to find as the numbers themselves.
void enlarge_pages([[maybe_unused]] char* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kPage = 1 << 21;
  const int64_t skipped = -reinterpret_cast<intptr_t>(memory) & (kPage - 1);
  if (bytes > skipped + kPage) madvise(memory + skipped, bytes - skipped, MADV_HUGEPAGE);
#endif
}

Weight weight_of(const Tensor& t) {
  Weight weight{t.const_data_ptr(), {}};
  for (int64_t n = 1; n <= std::min<int64_t>(t.dim(), 3); ++n) weight.strides[3 - n] = t.stride(t.dim() - n);
  return weight;
}

// The memory of a sampler: its weights are packed, its caches empty. weights: float32, float64 or bfloat16, all alike,
// of any strides. labels: int64 (B), or (0). spare: bytes, which are taken if there are enough, whatever they hold.
Tensor prepare_sampler(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& attentions, const Tensor& sizes,
    const std::vector<Tensor>& weights, const Tensor& labels, Tensor spare) {
  const SamplerKernel& kernel = best_kernels().sampler;
  SamplerProblem s = problem_of(steps, terms, taps, attentions, sizes, weights);
  std::vector<Weight> own;
  for (const Tensor& weight : weights) own.push_back(weight_of(weight));
  s.weights = own.data();
  s.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  Tensor memory = spare.numel() < kernel.bytes(s) ? Buffer<char>(kernel.bytes(s)).tensor : std::move(spare);
  s.memory = static_cast<char*>(memory.mutable_data_ptr());
  enlarge_pages(s.memory, memory.numel());
  kernel.begin(s);
  for_parts(s.num_steps, s.num_steps, [&](int64_t step, Span) { kernel.pack(s, step); });
  return memory;
}

// Draws the positions of `count` moments of every sample, from `first` on, into codes (B, H, W, num_codes). memory is
// what `prepare_sampler` returned for the same program and sizes, or an earlier call has left; other arguments are as
// SamplerProblem says.
void run_sampler(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& attentions, const Tensor& sizes,
    const std::vector<Tensor>& weights, const Tensor& condition, const Tensor& known, const Tensor& numbers,
    const Tensor& codes, const Tensor& memory, double temperature, double top_p, int64_t first, int64_t count) {
  const SamplerKernel& kernel = best_kernels().sampler;
  SamplerProblem s = problem_of(steps, terms, taps, attentions, sizes, weights);
  s.condition = condition.const_data_ptr();
  s.known = static_cast<const int64_t*>(known.const_data_ptr());
  s.numbers = static_cast<const int64_t*>(numbers.const_data_ptr());
  s.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  s.memory = static_cast<char*>(memory.mutable_data_ptr());
  s.temperature = temperature, s.top_p = top_p;
  if (s.top_k > 0 || top_p < 1) s.restrict_to = restrict_to;

  // The threads wait for each other. So they are new ones, as a pool might not run all of them at once.
  std::atomic<int> go{0};
  const auto work = [&](int64_t thread) {
    go.wait(0);
    if (go > 0) kernel.run(s, thread, first, count);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t thread = 1; thread < s.threads; ++thread) others.emplace_back(work, thread);
    go = 1;
  } catch (const std::exception&) {
    go = -1;
  }
  go.notify_all();
  work(0);
  for (std::thread& other : others) other.join();
  if (go < 0) throw std::runtime_error("the sampler can't start " + std::to_string(s.threads) + " threads");
}

}  // namespace

void add_sampler(const Ops& ops) {
  ops.add<prepare_sampler>(
      "prepare_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor attentions, Tensor sizes, Tensor[] weights,"
      " Tensor labels, Tensor spare) -> Tensor");
  ops.add<run_sampler>(
      "run_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor attentions, Tensor sizes, Tensor[] weights,"
      " Tensor condition, Tensor known, Tensor numbers, Tensor(a!) codes, Tensor(b!) memory, float temperature,"
      " float top_p, int first, int count) -> ()");
}

}  // namespace vqfast
