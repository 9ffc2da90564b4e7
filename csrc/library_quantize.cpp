// The host side of quantisation, which is nearest codes, stage by stage, and sums over them.
#include <algorithm>
#include <tuple>
#include <vector>

#include "books.h"

namespace vqfast {
namespace {

using Pointers = std::vector<const void*>;

// Where the codes of each stage are, (stages, K, D), each contiguous.
Pointers stages_of(const Tensor& codebooks) {
  Pointers codes(codebooks.size(0));
  const int64_t step = codebooks.stride(0) * int64_t(codebooks.element_size());
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

// The codes that each stage finds for what the ones before it left over, a block of vectors after another, each in
// cache from the first stage to the last.
class Search {
 public:
  // p: planned but for its codebooks; found: (p.rows, stages).
  Search(const Kernel& kernel, Problem& p, const Pointers& codes, int64_t threads, int64_t* found)
      : kernel_(kernel),
        p_(p),
        stages_(int64_t(codes.size())),
        found_(found),
        books_(make(kernel, p, codes, threads)),
        bytes_(kernel.scratch(p)),
        scratch_(threads * bytes_) {}

  // A thread's: `way` makes each stage's vectors, and follows what is found for them.
  template <class Way>
  void run(int64_t part, Span blocks, Way way) {
    books_.prepare(p_);
    std::vector<int64_t> per(stages_, p_.per);  // what has paid so far
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const Span here = rows_of(p_, block);
      way.begin(here);
      for (int64_t stage = 0; stage < stages_; ++stage) {
        Problem one = p_;
        one.rows = count_of(here), one.blocks = 1, one.per = per[stage];
        one.out = found_ + here.begin * stages_ + stage;
        Axis axes[2];
        one.axes = axes;
        way.enter(stage, one, axes);
        const int64_t book = p_.num_books > 1 ? stage : 0;
        per[stage] = kernel_.search(one, {book, book + 1}, scratch_.data() + part * bytes_);
        way.leave(stage);
      }
      way.end();
    }
  }

 private:
  // One codebook for all stages stays one.
  static Books make(const Kernel& kernel, Problem& p, const Pointers& codes, int64_t threads) {
    const bool one = size_t(std::count(codes.begin(), codes.end(), codes[0])) == codes.size();
    p.num_books = one ? 1 : int64_t(codes.size());
    return Books(kernel, p, one ? Pointers(1, codes[0]) : codes, threads);
  }

  const Kernel& kernel_;
  const Problem& p_;
  int64_t stages_;
  int64_t* found_;
  Books books_;
  int64_t bytes_;
  Buffer<char> scratch_;
};

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

// Vectors between projections.
struct Through {
  const ProjectedKernel& kernel;
  const Projected& v;
  float* memory;
  Span here{};

  void begin(Span block) { kernel.begin(v, here = block, memory); }
  void enter(int64_t stage, Problem& p, Axis* axes) const {
    const Latents latents = kernel.enter(v, here, stage, memory);
    p.x = latents.x, p.d_stride = latents.width, p.num_axes = 2;
    axes[0] = {(p.rows + latents.width - 1) / latents.width, latents.step, latents.width * v.stages};
    axes[1] = {latents.width, 1, v.stages};
  }
  void leave(int64_t stage) const { kernel.leave(v, here, stage, memory); }
  void end() const { kernel.end(v, here, memory); }
};

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
  const Pointers books = stages_of(codebooks);
  const Assigned v = assigned(z, books, codebooks.size(1), indices);
  Problem p{};
  p.type = type_of(codebooks);
  p.d = v.d, p.d_stride = 1, p.k = v.k;
  p.rows = v.outer * v.inner, p.num_books = 1;
  const int64_t threads = threads_for(double(p.rows) * double(v.stages) * double(v.k) * double(v.d));
  kernel.plan(p, threads, false);

  const int64_t parts = statistics ? std::min(threads, adders(v)) : threads, codes = statistics ? v.k : 0;
  Tensor quantized = torch::stable::empty_like(z);
  const Shares errors({parts, v.stages}, ScalarType::Double), counts({parts, v.stages, codes}, ScalarType::Long);
  const Shares sums({parts, v.stages, codes, v.d}, type);
  const auto follow = [&](int64_t part, Span span) {
    kernels.quantize.forward(
        v, span, quantized.mutable_data_ptr(), static_cast<double*>(errors.of(part)),
        static_cast<int64_t*>(counts.of(part)), sums.of(part));
  };

  Search search(kernel, p, books, threads, static_cast<int64_t*>(indices.mutable_data_ptr()));
  Buffer<char> rows(threads * p.block * v.d * number);
  for_parts(threads, p.blocks, [&](int64_t part, Span span) {
    const auto own = [&](Span here) {
      if (parts == threads) follow(part, here);
    };
    search.run(part, span, Straight{kernels.quantize, v, rows.data() + part * p.block * v.d * number, own});
  });
  if (parts < threads) for_parts(parts, p.rows, follow);
  for (const Shares* shares : {&errors, &counts, &sums}) shares->join();
  return {indices, quantized, errors.tensor, counts.tensor, sums.tensor};
}

// z (outer, D, inner) contiguous, each stage's codebook (K, D) contiguous, float64 where z is, else float32 -> the
// indices of `quantize`.
Tensor residual_codes(const Tensor& z, const std::vector<Tensor>& codebooks) {
  const Kernels kernels = best_kernels();
  const int64_t number = int64_t(codebooks[0].element_size());
  Tensor indices = torch::stable::empty({z.size(0), z.size(2), int64_t(codebooks.size())}, ScalarType::Long);
  Pointers books;
  for (const Tensor& book : codebooks) books.push_back(book.const_data_ptr());
  const Assigned v = assigned(z, books, codebooks[0].size(0), indices);
  Problem p{};
  p.type = type_of(codebooks[0]);
  p.d = v.d, p.d_stride = 1, p.k = v.k;
  p.rows = v.outer * v.inner, p.num_books = 1;
  const int64_t threads = threads_for(double(p.rows) * double(v.stages) * double(v.k) * double(v.d));
  kernels.nearest.plan(p, threads, false);
  Search search(kernels.nearest, p, books, threads, static_cast<int64_t*>(indices.mutable_data_ptr()));
  Buffer<char> rows(threads * p.block * v.d * number);
  for_parts(threads, p.blocks, [&](int64_t part, Span span) {
    char* own = rows.data() + part * p.block * v.d * number;
    search.run(part, span, Straight{kernels.quantize, v, own, [](Span) {}});
  });
  return indices;
}

// x (B, C, T), each stage's codebook (K, D), and for each the weight (D, C) and bias of the map into it and the weight
// (C, D) and bias of the map back, all contiguous float32 -> indices (B, T, stages), and where `details`, what each
// stage was given, (B, stages * D, T), and the sum of what came back, as x.
std::tuple<Tensor, Tensor, Tensor> projected_codes(
    const Tensor& x, const std::vector<Tensor>& codebooks, const std::vector<Tensor>& maps, bool unit, bool details) {
  const Kernels kernels = best_kernels();
  const auto numbers = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); };
  const int64_t stages = int64_t(codebooks.size()), k = codebooks[0].size(0), d = codebooks[0].size(1);
  Tensor indices = torch::stable::empty({x.size(0), x.size(2), stages}, ScalarType::Long);
  Tensor latents = torch::stable::empty({details ? x.size(0) : 0, stages * d, x.size(2)}, ScalarType::Float);
  Tensor quantized = torch::stable::empty({details ? x.size(0) : 0, x.size(1), x.size(2)}, ScalarType::Float);
  Projected v{numbers(x), x.size(0), x.size(2), x.size(1), d, stages, unit};
  std::vector<const float*> weights, codes;
  for (const Tensor& map : maps) weights.push_back(numbers(map));
  for (const Tensor& book : codebooks) codes.push_back(numbers(book));
  v.maps = weights.data(), v.codes = codes.data();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  if (details) {
    v.latents = static_cast<float*>(latents.mutable_data_ptr());
    v.quantized = static_cast<float*>(quantized.mutable_data_ptr());
  }
  Buffer<float> lengthened(unit ? stages * k * d : 0);
  Pointers books(codes.begin(), codes.end());
  for (int64_t stage = 0; unit && stage < stages; ++stage) {
    float* to = lengthened.data() + stage * k * d;
    kernels.projected.normalize(codes[stage], k, d, to);
    books[stage] = to;
  }
  Problem p{};
  p.type = Type::f32;
  p.d = d, p.k = k, p.beside = v.channels;
  p.rows = v.batch * v.length, p.num_books = 1;
  const int64_t threads = threads_for(double(p.rows) * double(stages) * double(k + v.channels) * double(d));
  kernels.nearest.plan(p, threads, false);
  Search search(kernels.nearest, p, books, threads, static_cast<int64_t*>(indices.mutable_data_ptr()));
  const int64_t size = kernels.projected.scratch(v, p.block);
  Buffer<float> memory(threads * size);
  for_parts(threads, p.blocks, [&](int64_t part, Span span) {
    search.run(part, span, Through{kernels.projected, v, memory.data() + part * size});
  });
  return {indices, latents, quantized};
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
  library.def("quantize(Tensor z, Tensor codebooks, bool statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("residual_codes(Tensor z, Tensor[] codebooks) -> Tensor");
  library.def(
      "projected_codes(Tensor x, Tensor[] codebooks, Tensor[] maps, bool unit, bool details)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "quantize_backward(Tensor grad, Tensor z, Tensor codebooks, Tensor indices, Tensor slopes, bool residuals)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(vqfast_native, CPU, library) {
  library.impl("quantize", TORCH_BOX(&vqfast::quantize));
  library.impl("residual_codes", TORCH_BOX(&vqfast::residual_codes));
  library.impl("projected_codes", TORCH_BOX(&vqfast::projected_codes));
  library.impl("quantize_backward", TORCH_BOX(&vqfast::quantize_backward));
}
