// The host side of nearest codes and of quantisation, which is nearest codes and sums over them.
#include <algorithm>
#include <tuple>
#include <vector>

#include "library.h"

namespace vqfast {
namespace {

// The codebooks of a planned search, each with its pivot; prepared once where blocks of rows share them.
class Books {
 public:
  // `step`: the bytes from one codebook's codes to the next one's.
  Books(const Kernel& kernel, Problem& p, const void* codes, int64_t step, int64_t threads)
      : kernel_(kernel),
        books_(p.num_books),
        pivots_(p.num_books * p.d),
        bytes_(p.blocks > 1 && p.parts == 1 ? kernel.prepared(p) : 0),
        prepared_(bytes_ * p.num_books <= kMost ? bytes_ * p.num_books : bytes_ = 0) {
    p.books = books_.data();
    for_parts(std::min(threads, p.num_books), p.num_books, [&](int64_t, Span span) {
      for (int64_t b = span.begin; b < span.end; ++b) {
        books_[b].codes = static_cast<const char*>(codes) + b * step;
        books_[b].pivot = pivots_.data() + b * p.d;
        books_[b].prepared = bytes_ ? prepared_.data() + b * bytes_ : nullptr;
        books_[b].per = p.per;
        kernel.centre(p, books_[b]);
      }
    });
  }

  // Each thread calls this before its first search.
  void prepare(const Problem& p) {
    if (bytes_ == 0) return;
    const int64_t parts = (p.groups + p.chunk - 1) / p.chunk;
    shared_.run(p.num_books * parts, [&](int64_t n) {
      kernel_.prepare(p, books_[n / parts], part_of(p.groups, parts, n % parts));
    });
  }

 private:
  static constexpr int64_t kMost = 1 << 26;  // bytes
  const Kernel& kernel_;
  std::vector<Codebook> books_;
  Buffer<double> pivots_;
  int64_t bytes_;  // of one
  Buffer<char> prepared_;
  Shared shared_;
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
  Books books_of(kernel, p, codebook.const_data_ptr(), step, threads);
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
  Books books(kernel, p, v.codes, v.book * number, threads);

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
    books.prepare(p);
    char* rows = residuals.data() + part * p.block * v.d * number;
    std::vector<int64_t> per(v.stages, p.per);  // what has paid so far
    for (int64_t block = span.begin; block < span.end; ++block) {
      const Span here = rows_of(p, block);
      kernels.quantize.gather(v, here, rows);
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        const Axis axis{count_of(here), v.d, v.stages};
        Problem one = p;
        one.x = rows, one.rows = axis.size, one.blocks = 1, one.axes = &axis, one.num_axes = 1;
        one.out = found + here.begin * v.stages + stage;
        one.per = per[stage];
        const int64_t book = v.book ? stage : 0;
        per[stage] = kernel.search(one, {book, book + 1}, scratch.data() + part * bytes);
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

}  // namespace
}  // namespace vqfast

STABLE_TORCH_LIBRARY_FRAGMENT(vqfast_native, library) {
  library.def("nearest(Tensor x, Tensor codebook) -> Tensor");
  library.def("quantize(Tensor z, Tensor codebooks, bool statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "quantize_backward(Tensor grad, Tensor z, Tensor codebooks, Tensor indices, Tensor slopes, bool residuals)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(vqfast_native, CPU, library) {
  library.impl("nearest", TORCH_BOX(&vqfast::nearest));
  library.impl("quantize", TORCH_BOX(&vqfast::quantize));
  library.impl("quantize_backward", TORCH_BOX(&vqfast::quantize_backward));
}
