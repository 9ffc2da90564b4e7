// The host side of nearest codes.
#include <optional>

#include "nearest/host_codebooks.h"

namespace vqfast {
namespace {

// x (..., N, D), codebook (..., K, D) and the lengths (..., K) that codes are divided by, if any, both contiguous and
// float64 where x is, else float32 -> int64 (..., N). The leading dimensions of the codebook broadcast to those of x.
// work: what the search adds its work to, or null.
Tensor search(const Tensor& x, const Tensor& codebook, const std::optional<Tensor>& lengths, Work* work) {
  const Kernel& kernel = best_kernels().nearest;
  const auto sizes = x.sizes(), strides = x.strides(), book_sizes = codebook.sizes();
  const int64_t dims = x.dim(), missing = dims - codebook.dim();
  Tensor out = empty(sizes, dims - 1, ScalarType::Long);
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
  p.work = work;

  const int64_t threads = threads_for(double(p.num_books) * double(p.rows) * double(p.k) * double(p.d));
  kernel.plan(p, threads, true);
  const int64_t step = p.k * p.d * int64_t(p.type == Type::f64 ? sizeof(double) : sizeof(float));
  std::vector<const void*> codes(p.num_books);
  for (int64_t b = 0; b < p.num_books; ++b) codes[b] = static_cast<const char*>(codebook.const_data_ptr()) + b * step;
  Books books_of(kernel, p, codes, threads, lengths ? lengths->const_data_ptr() : nullptr);
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
  for_parts(workers, units, [&](int64_t part, Span span) {
    books_of.prepare(p);
    kernel.search(p, span, scratch.data() + part * bytes);
  });
  if (p.parts > 1)
    for (int64_t b = 0; b < blocks; ++b) kernel.finish(p, b, scratch.data() + b * p.parts * bytes);
  return out;
}

Tensor nearest(const Tensor& x, const Tensor& codebook, const std::optional<Tensor>& lengths) {
  return search(x, codebook, lengths, nullptr);
}

// int64 (3): what a search takes, as Work has it.
Tensor nearest_work(const Tensor& x, const Tensor& codebook) {
  Work work{};
  search(x, codebook, std::nullopt, &work);
  Tensor counts = empty({3}, ScalarType::Long);
  int64_t* to = static_cast<int64_t*>(counts.mutable_data_ptr());
  to[0] = work.products, to[1] = work.candidates, to[2] = work.distances;
  return counts;
}

}  // namespace

void add_nearest(const Ops& ops) {
  ops.add<nearest>("nearest(Tensor x, Tensor codebook, Tensor? lengths=None) -> Tensor");
  ops.add<nearest_work>("nearest_work(Tensor x, Tensor codebook) -> Tensor");
}

}  // namespace vqfast
