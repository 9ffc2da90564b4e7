// The host side of nearest codes.
#include <optional>

#include "nearest/host_codebooks.h"

namespace vqfast {
namespace {

// x (..., N, D), of any strides and floating-point dtype; codebook (..., K, D) and, if its codes are to be divided by
// their lengths, these (..., K), both contiguous, float64 where x is, else float32 -> int64 (..., N). The leading
// dimensions of the codebook broadcast to those of x. counts: what the search adds its counts to, or null.
Tensor search(const Tensor& x, const Tensor& codebook, const std::optional<Tensor>& lengths, SearchCounts* counts) {
  const NearestKernel& kernel = best_kernels().nearest;
  const auto sizes = x.sizes(), strides = x.strides(), book_sizes = codebook.sizes();
  const int64_t dims = x.dim(), missing = dims - codebook.dim();
  Tensor out = empty(sizes, dims - 1, ScalarType::Long);
  if (out.numel() == 0) return out;

  // Along some dimensions the codebook stays the same: they count its vectors. Others count codebooks.
  std::vector<Axis> shared, own;
  int64_t out_stride = 1;
  for (int64_t i = dims - 2; i >= 0; --i) {
    const bool owns = i < dims - 2 && i >= missing && book_sizes[i - missing] > 1;
    auto& axes = owns ? own : shared;
    if (sizes[i] > 1) axes.insert(axes.begin(), {sizes[i], strides[i], out_stride});
    out_stride *= sizes[i];
  }

  NearestProblem p{};
  p.precision = precision_of(x);
  p.x = x.const_data_ptr();
  p.out = static_cast<int64_t*>(out.mutable_data_ptr());
  p.d = sizes[dims - 1];
  p.d_stride = strides[dims - 1];
  p.k = book_sizes[codebook.dim() - 2];
  p.vectors = p.num_books = 1;
  for (const Axis& axis : shared) p.vectors *= axis.size;
  for (const Axis& axis : own) p.num_books *= axis.size;
  p.axes = shared.data();
  p.num_axes = int64_t(shared.size());
  p.counts = counts;
  p.divided = lengths.has_value();

  const int64_t threads = threads_for(double(p.num_books) * double(p.vectors) * double(p.k) * double(p.d));
  kernel.plan(p, threads, true);
  const int64_t step = p.k * p.d * wide_size(p.precision);
  std::vector<const void*> codes(p.num_books);
  for (int64_t b = 0; b < p.num_books; ++b) codes[b] = static_cast<const char*>(codebook.const_data_ptr()) + b * step;
  Codebooks codebooks(kernel, p, codes, threads, lengths ? lengths->const_data_ptr() : nullptr);
  for (int64_t b = 0; b < p.num_books; ++b) {
    int64_t rest = b;
    for (auto axis = own.rbegin(); axis != own.rend(); ++axis) {
      p.books[b].x += rest % axis->size * axis->x_stride;
      p.books[b].out += rest % axis->size * axis->out_stride;
      rest /= axis->size;
    }
  }
  const int64_t bytes = kernel.scratch_bytes(p), blocks = p.blocks * p.num_books, units = blocks * p.parts;
  const int64_t workers = std::min(threads, units);
  Buffer<char> scratch(workers * bytes);
  for_parts(workers, units, [&](int64_t part, Span span) {
    codebooks.prepare(p);
    kernel.search(p, span, scratch.data() + part * bytes);
  });
  if (p.parts > 1)
    for (int64_t b = 0; b < blocks; ++b) kernel.finish(p, b, scratch.data() + b * p.parts * bytes);
  return out;
}

Tensor nearest(const Tensor& x, const Tensor& codebook, const std::optional<Tensor>& lengths) {
  return search(x, codebook, lengths, nullptr);
}

// What a search of `nearest` counts: int64, the fields of SearchCounts.
Tensor nearest_counts(const Tensor& x, const Tensor& codebook) {
  SearchCounts counts{};
  search(x, codebook, std::nullopt, &counts);
  Tensor result = empty({int64_t(sizeof counts / sizeof(int64_t))}, ScalarType::Long);
  std::memcpy(result.mutable_data_ptr(), &counts, sizeof counts);
  return result;
}

}  // namespace

void add_nearest(const Ops& ops) {
  ops.add<nearest>("nearest(Tensor x, Tensor codebook, Tensor? lengths=None) -> Tensor");
  ops.add<nearest_counts>("nearest_counts(Tensor x, Tensor codebook) -> Tensor");
}

}  // namespace vqfast
