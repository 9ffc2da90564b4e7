// The host side of residual quantisation: nearest codes, stage by stage, and sums over them. One stage is plain
// quantisation.
#include <algorithm>
#include <tuple>
#include <vector>

#include "residual/host_stages.h"

namespace vqfast {
namespace {

// Where the codes of each stage are: codebooks (stages, K, D), each contiguous.
Pointers stages_of(const Tensor& codebooks) {
  Pointers codes(codebooks.size(0));
  const int64_t step = codebooks.stride(0) * size_of(codebooks.scalar_type());
  for (size_t stage = 0; stage < codes.size(); ++stage)
    codes[stage] = static_cast<const char*>(codebooks.const_data_ptr()) + int64_t(stage) * step;
  return codes;
}

// codes: of each stage, (k, D); indices (outer, inner, stages). The arguments outlive the problem.
ResidualProblem problem_of(const Tensor& z, const Pointers& codes, int64_t k, const Tensor& indices) {
  ResidualProblem v{};
  v.precision = precision_of(z);
  v.z = z.const_data_ptr();
  v.codes = codes.data();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  v.outer = z.size(0), v.d = z.size(1), v.inner = z.size(2);
  v.stages = int64_t(codes.size()), v.k = k;
  return v;
}

// A thread's path through the stages (see Stages): each is given what the one before left, and after the last stage of
// a block comes done(its vectors).
template <class Done>
struct ResidualPath {
  const ResidualKernel& kernel;
  const ResidualProblem& v;
  char* residuals;  // (max_block, D)
  Done done;
  Span here{};

  void begin(Span block) { kernel.gather(v, here = block, residuals); }
  void enter(int64_t, NearestProblem& p, Axis* axes) const {
    p.x = residuals, p.num_axes = 1;
    axes[0] = {p.vectors, v.d, v.stages};
  }
  void leave(int64_t stage) const {
    if (stage + 1 < v.stages) kernel.subtract(v, here, stage, residuals);
  }
  void end() const { done(here); }
};

// Finds the indices of a problem.
struct ResidualSearch {
  const Kernels kernels;
  const ResidualProblem& v;
  Stages stages;
  int64_t bytes;  // of a block's residuals
  Buffer<char> residuals;

  // precision: of the codes.
  ResidualSearch(
      const Kernels& kernels, const ResidualProblem& v, Precision precision, const Pointers& codes, Tensor& indices)
      : kernels(kernels),
        v(v),
        stages(
            kernels.nearest, precision, v.outer * v.inner, v.d, v.k, 0, codes,
            static_cast<int64_t*>(indices.mutable_data_ptr())),
        bytes(stages.max_block() * v.d * wide_size(precision)),
        residuals(stages.threads() * bytes) {}

  // done(thread, vectors) follows each block.
  template <class Done>
  void run(const Done& done) {
    stages.search([&](int64_t thread) {
      const auto own = [&done, thread](Span here) { done(thread, here); };
      return ResidualPath<decltype(own)>{kernels.residual, v, residuals.data() + thread * bytes, own};
    });
  }
};

// How many parts of the vectors have sums (stages, K, D) of their own. It depends on the problem alone, so that no sum
// depends on the number of threads; as a power of two it divides among usual numbers of those. With four times as many
// vectors as a stage has codes, a part's sums cost little; two parts always pay, one for each thread.
int64_t parts_of(const ResidualProblem& v) {
  const int64_t vectors = v.outer * v.inner;
  int64_t parts = vectors < 2 * v.k ? 1 : 2;
  while (parts < 16 && 8 * parts * v.k <= vectors) parts *= 2;
  return parts;
}

Tensor zeros(std::initializer_list<int64_t> sizes, ScalarType type) {
  Tensor made = empty(sizes, type);
  made.zero();
  return made;
}

// Sums that each part adds up for itself, (parts, ...), zero at first; `join` adds them to the first part's, always in
// the same order.
struct PartSums {
  Tensor tensor;
  int64_t parts, count;

  PartSums(std::initializer_list<int64_t> sizes, ScalarType type)
      : tensor(zeros(sizes, type)), parts(*sizes.begin()), count(tensor.numel() / parts) {}
  // The sums of a part; null where they have no numbers.
  void* of(int64_t part) const {
    if (count == 0) return nullptr;
    return static_cast<char*>(tensor.mutable_data_ptr()) + part * count * size_of(tensor.scalar_type());
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
    for_parts(num_threads(), count, [&](int64_t, Span span) {
      auto* sums = static_cast<T*>(of(0));
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = span.begin; i < span.end; ++i) sums[i] += sums[part * count + i];
    });
  }
};

// z (outer, D, inner) contiguous, codebooks (stages, K, D), each contiguous, float64 where z is, else float32 ->
// - indices int64 (outer, inner, stages), each stage's codes of what the ones before it left;
// - quantized, their sum, as z;
// - errors float64 (parts, stages), the sums of (residual - e)^2;
// - counts int64 (parts, stages, K) and sums (parts, stages, K, D) of the residuals of each code; K = 0 without
//   `statistics`.
// The totals are in the first part. A block of vectors is read once: it stays in L2 from its first search to its sums.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize(
    const Tensor& z, const Tensor& codebooks, bool statistics) {
  const Kernels kernels = best_kernels();
  Tensor indices = empty({z.size(0), z.size(2), codebooks.size(0)}, ScalarType::Long);
  const Pointers books = stages_of(codebooks);
  const ResidualProblem v = problem_of(z, books, codebooks.size(1), indices);
  ResidualSearch search(kernels, v, precision_of(codebooks), books, indices);

  const int64_t threads = search.stages.threads(), parts = statistics ? parts_of(v) : threads;
  const int64_t codes = statistics ? v.k : 0, parts_of_thread = parts / threads;
  Tensor quantized = empty(z.sizes(), z.dim(), z.scalar_type());
  PartSums errors({parts, v.stages}, ScalarType::Double), counts({parts, v.stages, codes}, ScalarType::Long);
  PartSums sums({parts, v.stages, codes, v.d}, codebooks.scalar_type());
  const auto add_up = [&](int64_t part, Span span) {
    kernels.residual.forward(
        v, span, quantized.mutable_data_ptr(), static_cast<double*>(errors.of(part)),
        static_cast<int64_t*>(counts.of(part)), sums.of(part));
  };

  const bool whole = search.stages.whole(parts);  // else the sums wait until all codes are found
  search.run([&](int64_t thread, Span here) {
    if (!statistics) return add_up(thread, here);
    for (int64_t part = thread * parts_of_thread; whole && part < (thread + 1) * parts_of_thread; ++part) {
      const Span own = search.stages.part(parts, part);
      const Span both{std::max(here.begin, own.begin), std::min(here.end, own.end)};
      if (both.begin < both.end) add_up(part, both);
    }
  });
  if (statistics && !whole)
    for_parts(parts, parts, [&](int64_t part, Span) { add_up(part, search.stages.part(parts, part)); });
  for (const PartSums* each : {&errors, &counts, &sums}) each->join();
  return {std::move(indices), std::move(quantized), std::move(errors.tensor), std::move(counts.tensor),
          std::move(sums.tensor)};
}

// z (outer, D, inner) contiguous, codebooks: of each stage, (K, D) contiguous, float64 where z is, else float32 -> the
// indices of `quantize`.
Tensor residual_codes(const Tensor& z, const std::vector<Tensor>& codebooks) {
  Tensor indices = empty({z.size(0), z.size(2), int64_t(codebooks.size())}, ScalarType::Long);
  Pointers books;
  for (const Tensor& book : codebooks) books.push_back(book.const_data_ptr());
  const ResidualProblem v = problem_of(z, books, codebooks[0].size(0), indices);
  ResidualSearch(best_kernels(), v, precision_of(codebooks[0]), books, indices).run([](int64_t, Span) {});
  return indices;
}

// The gradient of quantized, laid out as z; z, codebooks and indices of `quantize`; slopes (stages) in the
// dtype of codebooks ->
// - the gradient of z: grad + the sum over stages of slopes[stage] * (residual - e);
// - the sums of residual - e at each code, (parts, stages, K, D), with the totals in the first part; K = 0 without
//   `differences`.
std::tuple<Tensor, Tensor> quantize_backward(
    const Tensor& grad, const Tensor& z, const Tensor& codebooks, const Tensor& indices, const Tensor& slopes,
    bool differences) {
  const ResidualKernel& kernel = best_kernels().residual;
  const Pointers books = stages_of(codebooks);
  const ResidualProblem v = problem_of(z, books, codebooks.size(1), indices);
  const int64_t parts = differences ? parts_of(v) : num_threads();
  Tensor grad_z = empty(z.sizes(), z.dim(), z.scalar_type());
  PartSums sums({parts, v.stages, differences ? v.k : 0, v.d}, codebooks.scalar_type());
  for_parts(parts, v.outer * v.inner, [&](int64_t part, Span span) {
    kernel.backward(
        v, span, grad.const_data_ptr(), slopes.const_data_ptr(), grad_z.mutable_data_ptr(), sums.of(part));
  });
  sums.join();
  return {std::move(grad_z), std::move(sums.tensor)};
}

}  // namespace

void add_residual(const Ops& ops) {
  ops.add<quantize>(
      "quantize(Tensor z, Tensor codebooks, bool statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.add<residual_codes>("residual_codes(Tensor z, Tensor[] codebooks) -> Tensor");
  ops.add<quantize_backward>(
      "quantize_backward(Tensor grad, Tensor z, Tensor codebooks, Tensor indices, Tensor slopes, bool differences)"
      " -> (Tensor, Tensor)");
}

}  // namespace vqfast
