// The host side of quantisation, which is nearest codes, stage by stage, and sums over them.
#include <algorithm>
#include <tuple>
#include <vector>

#include "residual/host_stages.h"

namespace vqfast {
namespace {

// Where the codes of each stage are, (stages, K, D), each contiguous.
Pointers stages_of(const Tensor& codebooks) {
  Pointers codes(codebooks.size(0));
  const int64_t step = codebooks.stride(0) * size_of(codebooks.scalar_type());
  for (size_t stage = 0; stage < codes.size(); ++stage)
    codes[stage] = static_cast<const char*>(codebooks.const_data_ptr()) + int64_t(stage) * step;
  return codes;
}

// codes: of each stage, (K, D); indices (outer, inner, stages).
Assigned assigned(const Tensor& z, const Pointers& codes, int64_t k, const Tensor& indices) {
  Assigned v{};
  v.type = type_of(z);
  v.z = z.const_data_ptr();
  v.codes = codes.data();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  v.outer = z.size(0), v.d = z.size(1), v.inner = z.size(2);
  v.stages = int64_t(codes.size()), v.k = k;
  return v;
}

// Vectors as they are, and at the end of a block `follow(here)`.
template <class Follow>
struct Straight {
  const QuantizeKernel& kernel;
  const Assigned& v;
  char* rows;
  Follow follow;
  Span here{};

  void begin(Span block) { kernel.gather(v, here = block, rows); }
  void enter(int64_t, Problem& p, Axis* axes) const {
    p.x = rows, p.num_axes = 1;
    axes[0] = {p.rows, v.d, v.stages};
  }
  void leave(int64_t stage) const {
    if (stage + 1 < v.stages) kernel.subtract(v, here, stage, rows);
  }
  void end() const { follow(here); }
};

// The indices of what is assigned, by codes of a type.
struct Search {
  const Kernels kernels;
  const Assigned& v;
  Stages stages;
  int64_t bytes;  // of a block's rows
  Buffer<char> rows;

  Search(const Kernels& kernels, const Assigned& v, Type type, const Pointers& codes, Tensor& indices)
      : kernels(kernels),
        v(v),
        stages(
            kernels.nearest, type, v.outer * v.inner, v.d, v.k, 0, codes,
            static_cast<int64_t*>(indices.mutable_data_ptr())),
        bytes(stages.block() * v.d * int64_t(type == Type::f64 ? sizeof(double) : sizeof(float))),
        rows(stages.threads() * bytes) {}

  // follow(thread, a block), once its indices are there
  template <class Follow>
  void run(const Follow& follow) {
    stages.search([&](int64_t part) {
      const auto own = [&follow, part](Span here) { follow(part, here); };
      return Straight<decltype(own)>{kernels.quantize, v, rows.data() + part * bytes, own};
    });
  }
};

// Parts of the vectors that each have sums of their own, (stages, K, D). Their number is the problem's alone, so that no
// sum depends on the number of threads. A power of two divides among most of those; four times as many vectors as a
// stage's sums make these cheap, and two parts are for a thread each.
int64_t parts_of(const Assigned& v) {
  const int64_t rows = v.outer * v.inner;
  int64_t parts = rows < 2 * v.k ? 1 : 2;
  while (parts < 16 && 8 * parts * v.k <= rows) parts *= 2;
  return parts;
}

Tensor zeros(std::initializer_list<int64_t> sizes, ScalarType type) {
  Tensor made = empty(sizes, type);
  made.zero();
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

// z (outer, D, inner) contiguous, codebooks (stages, K, D), each contiguous, float64 where z is, else float32 -> each
// stage's codes of what the ones before it left over, int64 (outer, inner, stages); quantized, their sum, as z; each
// stage's sum of (residual - e)^2, float64 (parts, stages); counts (parts, stages, K) and sums (parts, stages, K, D) of
// the residuals. The first part has the whole; of no codes unless asked. A block of vectors is read once: it stays in
// L2 from the first stage's search to its sums.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebooks, bool statistics) {
  const Kernels kernels = best_kernels();
  Tensor indices = empty({z.size(0), z.size(2), codebooks.size(0)}, ScalarType::Long);
  const Pointers books = stages_of(codebooks);
  const Assigned v = assigned(z, books, codebooks.size(1), indices);
  Search search(kernels, v, type_of(codebooks), books, indices);

  const int64_t threads = search.stages.threads(), parts = statistics ? parts_of(v) : threads;
  const int64_t codes = statistics ? v.k : 0, each = parts / threads;
  Tensor quantized = empty(z.sizes(), z.dim(), z.scalar_type());
  Shares errors({parts, v.stages}, ScalarType::Double), counts({parts, v.stages, codes}, ScalarType::Long);
  Shares sums({parts, v.stages, codes, v.d}, codebooks.scalar_type());
  const auto follow = [&](int64_t part, Span span) {
    kernels.quantize.forward(
        v, span, quantized.mutable_data_ptr(), static_cast<double*>(errors.of(part)),
        static_cast<int64_t*>(counts.of(part)), sums.of(part));
  };

  const bool whole = search.stages.whole(parts);  // else the sums wait until all codes are found
  search.run([&](int64_t thread, Span here) {
    if (!statistics) return follow(thread, here);
    for (int64_t part = thread * each; whole && part < (thread + 1) * each; ++part) {
      const Span own = search.stages.vectors_of(parts, part);
      const Span both{std::max(here.begin, own.begin), std::min(here.end, own.end)};
      if (both.begin < both.end) follow(part, both);
    }
  });
  if (statistics && !whole)
    for_parts(parts, parts, [&](int64_t part, Span) { follow(part, search.stages.vectors_of(parts, part)); });
  for (const Shares* shares : {&errors, &counts, &sums}) shares->join();
  return {std::move(indices), std::move(quantized), std::move(errors.tensor), std::move(counts.tensor),
          std::move(sums.tensor)};
}

// z (outer, D, inner) contiguous, each stage's codebook (K, D) contiguous, float64 where z is, else float32 -> the
// indices of `quantize`.
Tensor residual_codes(const Tensor& z, const std::vector<Tensor>& codebooks) {
  Tensor indices = empty({z.size(0), z.size(2), int64_t(codebooks.size())}, ScalarType::Long);
  Pointers books;
  for (const Tensor& book : codebooks) books.push_back(book.const_data_ptr());
  const Assigned v = assigned(z, books, codebooks[0].size(0), indices);
  Search(best_kernels(), v, type_of(codebooks[0]), books, indices).run([](int64_t, Span) {});
  return indices;
}

// The arguments and indices of `quantize`, laid out as z the gradient of quantized, and slopes (stages) in the type of
// codebooks -> the gradient of z, and sums of residual - e, (parts, stages, K, D) with the whole in the first part; of
// no codes unless asked.
std::tuple<Tensor, Tensor> quantize_backward(
    const Tensor& grad, const Tensor& z, const Tensor& codebooks, const Tensor& indices, const Tensor& slopes,
    bool residuals) {
  const QuantizeKernel& kernel = best_kernels().quantize;
  const Pointers books = stages_of(codebooks);
  const Assigned v = assigned(z, books, codebooks.size(1), indices);
  const int64_t parts = residuals ? parts_of(v) : num_threads();
  Tensor grad_z = empty(z.sizes(), z.dim(), z.scalar_type());
  Shares away({parts, v.stages, residuals ? v.k : 0, v.d}, codebooks.scalar_type());
  for_parts(parts, v.outer * v.inner, [&](int64_t part, Span span) {
    kernel.backward(
        v, span, grad.const_data_ptr(), slopes.const_data_ptr(), grad_z.mutable_data_ptr(), away.of(part));
  });
  away.join();
  return {std::move(grad_z), std::move(away.tensor)};
}

}  // namespace

void add_quantize(const Ops& ops) {
  ops.add<quantize>("quantize(Tensor z, Tensor codebooks, bool statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.add<residual_codes>("residual_codes(Tensor z, Tensor[] codebooks) -> Tensor");
  ops.add<quantize_backward>(
      "quantize_backward(Tensor grad, Tensor z, Tensor codebooks, Tensor indices, Tensor slopes, bool residuals)"
      " -> (Tensor, Tensor)");
}

}  // namespace vqfast
