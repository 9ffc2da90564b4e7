// The host side of sampling.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "shared/glibc.h"
#include "host/library.h"

namespace vqfast {
namespace {

// Hides the logits that top_k and top_p leave out, as vqfast/sampling/draw.py says. What isn't finite is the draw's to report.
void restrict_to(const Sampling& s, double* logits, void* scratch) {
  const int64_t k = s.num_embeddings;
  double* sorted = static_cast<double*>(scratch);
  auto* order = static_cast<int64_t*>(scratch);
  if (std::any_of(logits, logits + k, [](double x) { return x != x; })) return;
  if (s.top_k > 0 && s.top_k < k) {
    std::copy(logits, logits + k, sorted);
    std::nth_element(sorted, sorted + s.top_k - 1, sorted + k, std::greater<>());
    const double least = sorted[s.top_k - 1];
    std::replace_if(logits, logits + k, [=](double x) { return x < least; }, -INFINITY);
  }
  if (s.top_p >= 1 || s.temperature <= 0) return;
  for (int64_t i = 0; i < k; ++i) order[i] = i;
  std::sort(order, order + k, [=](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  const double highest = logits[order[0]];
  double total = 0, before = 0;
  for (int64_t i = 0; i < k; ++i) total += std::exp((logits[order[i]] - highest) / s.temperature);
  for (int64_t i = 0; i < k; ++i) {
    const double p = std::exp((logits[order[i]] - highest) / s.temperature) / total;
    if (i > 0 && before >= s.top_p) logits[order[i]] = -INFINITY;
    before += p;
  }
}

// steps, terms, taps: rows of the structs in sampler.h; sizes: num_embeddings, batch, height, width, block,
// condition_channels, the codes' rows, left and right, threads, groups, seed, top_k; all int64.
Sampling sampling(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& sizes, const Tensor& weights) {
  Sampling s{};
  const auto* size = static_cast<const int64_t*>(sizes.const_data_ptr());
  const ScalarType type = weights.scalar_type();
  s.precision = type == ScalarType::Double     ? Precision::f64
                : type == ScalarType::BFloat16 ? Precision::bf16
                                               : Precision::f32;
  s.steps = static_cast<const Step*>(steps.const_data_ptr());
  s.terms = static_cast<const Term*>(terms.const_data_ptr());
  s.taps = static_cast<const Tap*>(taps.const_data_ptr());
  s.num_steps = steps.size(0);
  s.weights = weights.const_data_ptr();
  s.num_embeddings = size[0], s.batch = size[1], s.height = size[2], s.width = size[3], s.block = size[4];
  s.condition_channels = size[5];
  s.cache = {size[6], size[7], size[8]};
  s.threads = size[9], s.groups = size[10];
  s.seed = uint64_t(size[11]), s.top_k = size[12];
  return s;
}

// A sampler's memory: weights packed, caches empty. labels (B), or none of them.
Tensor prepare_sampler(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& sizes, const Tensor& weights,
    const Tensor& labels) {
  const SamplerKernel& kernel = best_kernels().sampler;
  Sampling s = sampling(steps, terms, taps, sizes, weights);
  s.labels = static_cast<const int64_t*>(labels.const_data_ptr());
  Buffer<char> memory(kernel.bytes(s));
  s.memory = memory.data();
  kernel.begin(s);
  for_parts(s.num_steps, s.num_steps, [&](int64_t step, Span) { kernel.pack(s, step); });
  return std::move(memory.tensor);
}

// Draws `count` positions of every image into codes, from `first` on.
void run_sampler(
    const Tensor& steps, const Tensor& terms, const Tensor& taps, const Tensor& sizes, const Tensor& weights,
    const Tensor& condition, const Tensor& known, const Tensor& numbers, const Tensor& codes, const Tensor& memory,
    double temperature, double top_p, int64_t first, int64_t count) {
  const SamplerKernel& kernel = best_kernels().sampler;
  Sampling s = sampling(steps, terms, taps, sizes, weights);
  s.condition = condition.const_data_ptr();
  s.known = static_cast<const int64_t*>(known.const_data_ptr());
  s.numbers = static_cast<const int64_t*>(numbers.const_data_ptr());
  s.codes = static_cast<int64_t*>(codes.mutable_data_ptr());
  s.memory = static_cast<char*>(memory.mutable_data_ptr());
  s.temperature = temperature, s.top_p = top_p;
  if (s.top_k > 0 || top_p < 1) s.restrict_to = restrict_to;

  // Threads of our own, which wait for each other: a pool might not run all of them at once.
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
      "prepare_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor sizes, Tensor weights, Tensor labels)"
      " -> Tensor");
  ops.add<run_sampler>(
      "run_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor sizes, Tensor weights, Tensor condition,"
      " Tensor known, Tensor numbers, Tensor(a!) codes, Tensor(b!) memory, float temperature, float top_p,"
      " int first, int count) -> ()");
}

}  // namespace vqfast
