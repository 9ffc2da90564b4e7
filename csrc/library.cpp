// The ops, registered through torch's stable ABI: one library for every Python and every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "masked_conv.h"
#include "nearest.h"
#include "quantize.h"
#include "sampler.h"

namespace vqfast {

// Weak: a variant that the compiler couldn't build is null.
#define VQFAST_VARIANT(name)                                                   \
  namespace name {                                                             \
  extern const Kernel kernel __attribute__((weak));                            \
  extern const QuantizeKernel quantize_kernel __attribute__((weak));           \
  extern const MaskedConvKernel masked_conv_kernel __attribute__((weak));      \
  extern const SamplerKernel sampler_kernel __attribute__((weak));             \
  }
VQFAST_VARIANT(portable)
VQFAST_VARIANT(avx2)
VQFAST_VARIANT(avx512)
VQFAST_VARIANT(avx512bf16)

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Kernels {
  const Kernel& nearest;
  const QuantizeKernel& quantize;
  const MaskedConvKernel& masked_conv;
  const SamplerKernel& sampler;
};

// The best kernels that this CPU runs.
Kernels best_kernels() {
#define VQFAST_RETURN(name)                                                    \
  if (&name::kernel && &name::quantize_kernel && &name::masked_conv_kernel && &name::sampler_kernel) \
    return {name::kernel, name::quantize_kernel, name::masked_conv_kernel, name::sampler_kernel};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) VQFAST_RETURN(avx512bf16)
  if (avx512) VQFAST_RETURN(avx512)
  if (avx2) VQFAST_RETURN(avx2)
#endif
  return {portable::kernel, portable::quantize_kernel, portable::masked_conv_kernel, portable::sampler_kernel};
}

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    default: STD_TORCH_CHECK(false, "want floating-point numbers");
  }
}

// Uninitialised memory, torch's so that it is aligned and counted.
template <class T>
struct Buffer {
  Tensor tensor;
  explicit Buffer(int64_t count) : tensor(torch::stable::empty({count * int64_t(sizeof(T))}, ScalarType::Byte)) {}
  T* data() { return static_cast<T*>(tensor.mutable_data_ptr()); }
};

// f(part, begin, end) for `parts` even parts of `count`, in parallel.
template <class F>
void for_parts(int64_t parts, int64_t count, const F& f) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part, part_of(count, parts, part));
  });
}

// A thread for every 2^18 steps: fewer aren't worth its start.
int64_t threads_for(double work) {
  return int64_t(std::clamp(work / (1 << 18), 1.0, double(torch::stable::get_num_threads())));
}

// The codebooks of a planned search, each with its pivot.
struct Books {
  std::vector<Codebook> books;
  Buffer<double> pivots;

  // `step`: the bytes from one codebook's codes to the next one's.
  Books(const Kernel& kernel, Problem& p, const void* codes, int64_t step, int64_t threads)
      : books(p.num_books), pivots(p.num_books * p.d) {
    p.books = books.data();
    for_parts(std::min(threads, p.num_books), p.num_books, [&](int64_t, Span span) {
      for (int64_t b = span.begin; b < span.end; ++b) {
        books[b].codes = static_cast<const char*>(codes) + b * step;
        books[b].pivot = pivots.data() + b * p.d;
        kernel.centre(p, books[b]);
      }
    });
  }
};

// x (..., N, D), codebook (..., K, D) contiguous, float64 where x is, else float32 -> int64 (..., N).
// The leading dimensions of the codebook broadcast to those of x.
Tensor nearest(const Tensor& x, const Tensor& codebook) {
  const Kernel& kernel = best_kernels().nearest;
  const auto sizes = x.sizes(), strides = x.strides(), book_sizes = codebook.sizes();
  const int64_t dims = x.dim(), missing = dims - codebook.dim();
  Tensor out = torch::stable::empty({sizes.data(), size_t(dims - 1)}, ScalarType::Long);
  if (out.numel() == 0) return out;

  // Dimensions along which the codebook stays the same are rows; each step along the others is another codebook.
  std::vector<Axis> rows, books;
  int64_t out_stride = 1;
  for (int64_t i = dims - 2; i >= 0; --i) {
    const bool own = i < dims - 2 && i >= missing && book_sizes[i - missing] > 1;
    if (sizes[i] > 1) (own ? books : rows).insert((own ? books : rows).begin(), {sizes[i], strides[i], out_stride});
    out_stride *= sizes[i];
  }

  Problem p{};
  p.type = type_of(x);
  p.x = x.const_data_ptr();
  p.out = static_cast<int64_t*>(out.mutable_data_ptr());
  p.d = sizes[dims - 1];
  p.d_stride = strides[dims - 1];
  p.k = book_sizes[codebook.dim() - 2];
  p.rows = p.num_books = 1;
  for (const Axis& axis : rows) p.rows *= axis.size;
  for (const Axis& axis : books) p.num_books *= axis.size;
  p.axes = rows.data();
  p.num_axes = int64_t(rows.size());

  const int64_t threads = threads_for(double(p.num_books) * double(p.rows) * double(p.k) * double(p.d));
  kernel.plan(p, threads, true);
  const int64_t step = p.k * p.d * int64_t(p.type == Type::f64 ? sizeof(double) : sizeof(float));
  const Books books_of(kernel, p, codebook.const_data_ptr(), step, threads);
  for (int64_t b = 0; b < p.num_books; ++b) {
    int64_t rest = b;
    for (auto axis = books.rbegin(); axis != books.rend(); ++axis) {
      p.books[b].x += rest % axis->size * axis->x_stride;
      p.books[b].out += rest % axis->size * axis->out_stride;
      rest /= axis->size;
    }
  }
  const int64_t bytes = kernel.scratch(p), blocks = p.blocks * p.num_books, units = blocks * p.parts;
  const int64_t workers = std::min(threads, units);
  Buffer<char> scratch(workers * bytes);
  for_parts(workers, units, [&](int64_t part, Span span) { kernel.search(p, span, scratch.data() + part * bytes); });
  if (p.parts > 1)
    for (int64_t b = 0; b < blocks; ++b) kernel.finish(p, b, scratch.data() + b * p.parts * bytes);
  return out;
}

// codebooks: (stages, K, D), each contiguous; indices (outer, inner, stages).
Assigned assigned(const Tensor& z, const Tensor& codebooks, const Tensor& indices) {
  Assigned v{};
  v.type = type_of(z);
  v.z = z.const_data_ptr();
  v.codes = codebooks.const_data_ptr();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  v.outer = z.size(0), v.d = z.size(1), v.inner = z.size(2);
  v.stages = codebooks.size(0), v.k = codebooks.size(1), v.book = codebooks.stride(0);
  return v;
}

// Threads that each add up sums of their own, (stages, K, D): as many as make a stage's no more than the vectors.
int64_t adders(const Assigned& v) {
  return std::clamp<int64_t>(v.outer * v.inner / std::max<int64_t>(v.k, 1), 1, torch::stable::get_num_threads());
}

Tensor zeros(std::initializer_list<int64_t> sizes, ScalarType type) {
  Tensor made = torch::stable::empty(sizes, type);
  torch::stable::zero_(made);
  return made;
}

// Sums that parts add up apart, (parts, ...), and then onto the first one's, always in the same order.
struct Shares {
  Tensor tensor;
  int64_t parts, count;

  Shares(std::initializer_list<int64_t> sizes, ScalarType type)
      : tensor(zeros(sizes, type)), parts(*sizes.begin()), count(tensor.numel() / parts) {}
  // Null where there is nothing to add up.
  void* of(int64_t part) const {
    if (count == 0) return nullptr;
    return static_cast<char*>(tensor.mutable_data_ptr()) + part * count * int64_t(tensor.element_size());
  }
  void join() const {
    switch (tensor.scalar_type()) {
      case ScalarType::Long: return join_as<int64_t>();
      case ScalarType::Double: return join_as<double>();
      default: return join_as<float>();
    }
  }

 private:
  template <class T>
  void join_as() const {
    for_parts(torch::stable::get_num_threads(), count, [&](int64_t, Span span) {
      auto* sums = static_cast<T*>(of(0));
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = span.begin; i < span.end; ++i) sums[i] += sums[part * count + i];
    });
  }
};

// z (outer, D, inner) contiguous, codebooks (stages, K, D), each contiguous, float64 where z is, else float32 -> each
// stage's codes of what the ones before it left over, int64 (outer, inner, stages); quantized, their sum, as z; each
// stage's sum of (residual - e)^2, float64 (parts, stages); counts (parts, stages, K) and sums (parts, stages, K, D) of
// the residuals. The first part has the whole; of no codes unless asked. A block of vectors is read once: it stays in
// L2 from the first stage's search to its sums.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebooks, bool statistics) {
  const Kernels kernels = best_kernels();
  const Kernel& kernel = kernels.nearest;
  const ScalarType type = codebooks.scalar_type();
  const int64_t number = int64_t(codebooks.element_size());
  Tensor indices = torch::stable::empty({z.size(0), z.size(2), codebooks.size(0)}, ScalarType::Long);
  const Assigned v = assigned(z, codebooks, indices);
  Problem p{};
  p.type = type_of(codebooks);
  p.d = v.d, p.d_stride = 1, p.k = v.k;
  p.rows = v.outer * v.inner, p.num_books = 1;
  const int64_t threads = threads_for(double(p.rows) * double(v.stages) * double(v.k) * double(v.d));
  kernel.plan(p, threads, false);
  p.num_books = v.book ? v.stages : 1;
  const Books books(kernel, p, v.codes, v.book * number, threads);

  const int64_t parts = statistics ? std::min(threads, adders(v)) : threads, codes = statistics ? v.k : 0;
  Tensor quantized = torch::stable::empty_like(z);
  const Shares errors({parts, v.stages}, ScalarType::Double), counts({parts, v.stages, codes}, ScalarType::Long);
  const Shares sums({parts, v.stages, codes, v.d}, type);
  const auto follow = [&](int64_t part, Span span) {
    kernels.quantize.forward(
        v, span, quantized.mutable_data_ptr(), static_cast<double*>(errors.of(part)),
        static_cast<int64_t*>(counts.of(part)), sums.of(part));
  };

  auto* found = static_cast<int64_t*>(indices.mutable_data_ptr());
  const int64_t bytes = kernel.scratch(p);
  Buffer<char> scratch(threads * bytes), residuals(threads * p.block * v.d * number);
  for_parts(threads, p.blocks, [&](int64_t part, Span span) {
    char* rows = residuals.data() + part * p.block * v.d * number;
    std::vector<char> coarse(v.stages, p.coarse);  // whether that still pays
    for (int64_t block = span.begin; block < span.end; ++block) {
      const Span here = rows_of(p, block);
      kernels.quantize.gather(v, here, rows);
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        const Axis axis{here.end - here.begin, v.d, v.stages};
        Problem one = p;
        one.x = rows, one.rows = axis.size, one.blocks = 1, one.axes = &axis, one.num_axes = 1;
        one.out = found + here.begin * v.stages + stage;
        one.coarse = coarse[stage];
        const int64_t book = v.book ? stage : 0;
        coarse[stage] = kernel.search(one, {book, book + 1}, scratch.data() + part * bytes);
        if (stage + 1 < v.stages) kernels.quantize.subtract(v, here, stage, rows);
      }
      if (parts == threads) follow(part, here);
    }
  });
  if (parts < threads) for_parts(parts, p.rows, follow);
  for (const Shares* shares : {&errors, &counts, &sums}) shares->join();
  return {indices, quantized, errors.tensor, counts.tensor, sums.tensor};
}

// The arguments and indices of `quantize`, laid out as z the gradient of quantized, and slopes (stages) in the type of
// codebooks -> the gradient of z, and sums of residual - e, (parts, stages, K, D) with the whole in the first part; of
// no codes unless asked.
std::tuple<Tensor, Tensor> quantize_backward(
    const Tensor& grad, const Tensor& z, const Tensor& codebooks, const Tensor& indices, const Tensor& slopes,
    bool residuals) {
  const QuantizeKernel& kernel = best_kernels().quantize;
  const Assigned v = assigned(z, codebooks, indices);
  const int64_t parts = residuals ? adders(v) : torch::stable::get_num_threads();
  Tensor grad_z = torch::stable::empty_like(z);
  const Shares away({parts, v.stages, residuals ? v.k : 0, v.d}, codebooks.scalar_type());
  for_parts(parts, v.outer * v.inner, [&](int64_t part, Span span) {
    kernel.backward(
        v, span, grad.const_data_ptr(), slopes.const_data_ptr(), grad_z.mutable_data_ptr(), away.of(part));
  });
  away.join();
  return {grad_z, away.tensor};
}

// ------------------------------------------------------------------------------------------- masked convolution

// A dense (B, C, H, W) tensor, or what repeats over the grid, (B, C, 1, 1).
Grid grid(const std::optional<Tensor>& t, const Tensor& like, bool last) {
  if (!t) return {};
  const int64_t c = t->size(1), h = t->size(2), w = t->size(3);
  Grid g{t->mutable_data_ptr(), c * h * w, last ? 1 : h * w, last ? w * c : w, last ? c : 1};
  if (h == 1 && like.size(2) > 1) g.row = 0;
  if (w == 1 && like.size(3) > 1) g.column = 0;
  return g;
}

// The problem's sizes and tensors; all are channels last where x is.
MaskedConv masked_conv_of(const Tensor& x, const std::optional<Tensor>& extra, const std::optional<Tensor>& residual,
                          const Tensor& result, const std::optional<Tensor>& kept) {
  const bool codes = x.scalar_type() == ScalarType::Long;
  const bool last = codes || x.size(2) * x.size(3) == 1 || (x.stride(1) == 1 && x.size(1) > 1);
  MaskedConv p{};
  p.type = type_of(result);
  p.batch = x.size(0), p.in = x.size(1), p.height = x.size(2), p.width = x.size(3);
  if (codes)
    p.codes = static_cast<const int64_t*>(x.const_data_ptr());
  else
    p.x = grid(x, x, last);
  p.extra = grid(extra, x, last), p.residual = grid(residual, x, last);
  p.result = grid(result, x, last), p.kept = grid(kept, x, last);
  return p;
}

// (C_out, C_in, kh, kw) of any strides but contiguous kernels, of which the taps are used.
void set_weight(MaskedConv& p, const Tensor& weight, const std::vector<int64_t>& taps, const std::vector<int64_t>& dy,
                const std::vector<int64_t>& dx) {
  p.out = weight.size(0);
  for (int64_t n = 0; p.codes && n < p.batch * p.height * p.width; ++n)
    STD_TORCH_CHECK(p.codes[n] >= 0 && p.codes[n] < weight.size(1), "codes hold ", p.codes[n], "; want 0 to ",
                    weight.size(1) - 1);
  if (p.codes) p.in = weight.size(1);
  p.weight = weight.mutable_data_ptr();
  p.weight_out = weight.stride(0), p.weight_in = weight.stride(1);
  p.taps = int64_t(taps.size()), p.tap = taps.data(), p.dy = dy.data(), p.dx = dx.data();
}

double multiplications(const MaskedConv& p) {
  return double(p.batch * p.height * p.width) * double(p.taps + 1) * double(p.in) * double(p.out);
}

// result = activation(conv(x) + bias + extra) + residual, and the sums into kept. Tap t of the weight's kernels sees
// the position (dy, dx) away. All tensors are contiguous or all channels last; int64 x (B, 1, H, W) names one-hot
// vectors.
void masked_conv(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> extra,
                 std::optional<Tensor> residual, Tensor result, std::optional<Tensor> kept, std::vector<int64_t> taps,
                 std::vector<int64_t> dy, std::vector<int64_t> dx, int64_t activation) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  MaskedConv p = masked_conv_of(x, extra, residual, result, kept);
  set_weight(p, weight, taps, dy, dx);
  p.bias = bias ? bias->mutable_data_ptr() : nullptr;
  p.epilogue = Epilogue(activation);
  const int64_t threads = threads_for(multiplications(p));
  std::vector<Product> products(4 * taps.size());
  p.products = products.data();
  kernel.plan(p, threads);
  const int64_t bytes = kernel.scratch(p);
  Buffer<char> packed(kernel.packed(p)), scratch(threads * bytes);
  for_parts(threads, kernel.tiles(p), [&](int64_t, Span tiles) { kernel.pack(p, tiles, packed.data()); });
  for_parts(threads, kernel.blocks(p), [&](int64_t part, Span blocks) {
    kernel.forward(p, blocks, packed.data(), scratch.data() + part * bytes);
  });
}

// Gradients of the weight (its taps only) and of the bias, of that of the sums.
void masked_conv_weight_gradient(Tensor grad, Tensor x, Tensor grad_weight, Tensor grad_bias, std::vector<int64_t> taps,
                                 std::vector<int64_t> dy, std::vector<int64_t> dx) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  MaskedConv p = masked_conv_of(x, std::nullopt, std::nullopt, grad, std::nullopt);
  set_weight(p, grad_weight, taps, dy, dx);
  p.bias = grad_bias.mutable_data_ptr();
  const int64_t threads = threads_for(multiplications(p));
  std::vector<Product> products(4 * taps.size());
  p.products = products.data();
  kernel.plan(p, threads);
  const int64_t bytes = kernel.scratch(p), sums = kernel.packed(p), parts = kernel.weight_parts(p);
  // Threads share the positions, as far as room for sums allows, then the weight.
  const int64_t room = (int64_t{1} << 26) / std::max<int64_t>(1, sums);
  const int64_t shares = std::clamp<int64_t>(std::min(room, kernel.blocks(p)), 1, threads);
  const int64_t groups = (threads + shares - 1) / shares;
  Buffer<char> packed(shares * sums), scratch(threads * bytes);
  for_parts(threads, shares * groups, [&](int64_t thread, Span units) {
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t share = unit / groups, group = unit % groups;
      kernel.weight_gradient(p, part_of(kernel.blocks(p), shares, share), part_of(parts, groups, group),
                             packed.data() + share * sums, scratch.data() + thread * bytes);
    }
  });
  for_parts(threads, parts, [&](int64_t, Span span) { kernel.put_gradient(p, span, shares, packed.data()); });
}

// result = tanh(a) * sigmoid(b) of the channels' halves of x + extra; with the gradient of that, x's gradient.
void gate(Tensor x, std::optional<Tensor> extra, std::optional<Tensor> grad, Tensor result) {
  const MaskedConvKernel& kernel = best_kernels().masked_conv;
  MaskedConv p = masked_conv_of(x, extra, grad, result, std::nullopt);
  p.out = p.in;
  p.epilogue = grad ? Epilogue::gate_gradient : Epilogue::gate;
  const int64_t threads = threads_for(double(x.numel()) * 16);
  kernel.plan(p, threads);
  for_parts(threads, kernel.blocks(p), [&](int64_t, Span blocks) { kernel.gate(p, blocks); });
}

// Hides the logits that top_k and top_p leave out, as vqfast/prior/sampler.py says. NaNs are the draw's to report.
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
  return memory.tensor;
}

// Draws `count` positions of every image into codes, from `first` on. Returns whether a logit was NaN.
bool run_sampler(
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
  std::atomic<int> go{0}, nan{0};
  const auto work = [&](int64_t thread) {
    go.wait(0);
    if (go > 0 && kernel.run(s, thread, first, count)) nan = 1;
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
  STD_TORCH_CHECK(go > 0, "the sampler can't start ", s.threads, " threads");
  return nan;
}

}  // namespace
}  // namespace vqfast

STABLE_TORCH_LIBRARY(vqfast_native, library) {
  library.def("nearest(Tensor x, Tensor codebook) -> Tensor");
  library.def("quantize(Tensor z, Tensor codebooks, bool statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "quantize_backward(Tensor grad, Tensor z, Tensor codebooks, Tensor indices, Tensor slopes, bool residuals)"
      " -> (Tensor, Tensor)");
  library.def(
      "masked_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? extra, Tensor? residual, Tensor(a!) result,"
      " Tensor(b!)? kept, int[] taps, int[] dy, int[] dx, int activation) -> ()");
  library.def(
      "masked_conv_weight_gradient(Tensor grad, Tensor x, Tensor(a!) grad_weight, Tensor(b!) grad_bias, int[] taps,"
      " int[] dy, int[] dx) -> ()");
  library.def("gate(Tensor x, Tensor? extra, Tensor? grad, Tensor(a!) result) -> ()");
  library.def(
      "prepare_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor sizes, Tensor weights, Tensor labels)"
      " -> Tensor");
  library.def(
      "run_sampler(Tensor steps, Tensor terms, Tensor taps, Tensor sizes, Tensor weights, Tensor condition,"
      " Tensor known, Tensor numbers, Tensor(a!) codes, Tensor(b!) memory, float temperature, float top_p,"
      " int first, int count) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(vqfast_native, CPU, library) {
  library.impl("nearest", TORCH_BOX(&vqfast::nearest));
  library.impl("quantize", TORCH_BOX(&vqfast::quantize));
  library.impl("quantize_backward", TORCH_BOX(&vqfast::quantize_backward));
  library.impl("masked_conv", TORCH_BOX(&vqfast::masked_conv));
  library.impl("masked_conv_weight_gradient", TORCH_BOX(&vqfast::masked_conv_weight_gradient));
  library.impl("gate", TORCH_BOX(&vqfast::gate));
  library.impl("prepare_sampler", TORCH_BOX(&vqfast::prepare_sampler));
  library.impl("run_sampler", TORCH_BOX(&vqfast::run_sampler));
}
