// The host side of residual quantisation: nearest codes, stage by stage, and sums over them. One stage is plain
// quantisation.
#include <algorithm>
#include <tuple>
#include <vector>

#include "residual/host_stages.h"

namespace vqfast {
namespace {

// Where the codes of each stage are: codebooks (stages, K, D), each contiguous, or one, (K, D).
Pointers stages_of(const Tensor& codebooks) {
  if (codebooks.dim() == 2) return {codebooks.const_data_ptr()};
  Pointers codes(codebooks.size(0));
  const int64_t step = codebooks.stride(0) * size_of(codebooks.scalar_type());
  for (size_t stage = 0; stage < codes.size(); ++stage)
    codes[stage] = static_cast<const char*>(codebooks.const_data_ptr()) + int64_t(stage) * step;
  return codes;
}

// z, contiguous or with its channels adjacent, as a contiguous (outer, D, inner).
struct Vectors {
  int64_t outer = 1, d, inner = 1;
  Vectors(const Tensor& z, int64_t channel_dim) : d(z.size(channel_dim)) {
    const bool contiguous = z.is_contiguous();
    for (int64_t i = 0; i < z.dim(); ++i)
      if (i != channel_dim) (i > channel_dim && contiguous ? inner : outer) *= z.size(i);
  }
};

// (the shape of z without its channels, rest)
Tensor empty_indices(const Tensor& z, int64_t channel_dim, const std::vector<int64_t>& rest) {
  std::vector<int64_t> sizes(z.sizes(), z.sizes() + z.dim());
  sizes.erase(sizes.begin() + channel_dim);
  sizes.insert(sizes.end(), rest.begin(), rest.end());
  return empty(sizes.data(), int64_t(sizes.size()), ScalarType::Long);
}

// codes: of each stage, (k, D); indices (outer, inner, stages). The tensors and the codes outlive the problem.
ResidualProblem problem_of(
    const Tensor& z, const Vectors& vectors, const Pointers& codes, int64_t k, const Tensor& indices) {
  ResidualProblem v{};
  v.precision = precision_of(z);
  v.z = z.const_data_ptr();
  v.codes = codes.data();
  v.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  v.outer = vectors.outer, v.d = vectors.d, v.inner = vectors.inner;
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

// f(i, a type) for the numbers from `span` on, where the type is T or as many of T as a register of any CPU holds: host
// sides are compiled for size, without vectors.
template <class T, class F>
void for_numbers(Span span, const F& f) {
  typedef T Few __attribute__((vector_size(16)));
  constexpr int64_t kFew = sizeof(Few) / sizeof(T);
  int64_t i = span.begin;
  for (; i + kFew <= span.end; i += kFew) f(i, Few{});
  for (; i < span.end; ++i) f(i, T{});
}
// At any address.
template <class V, class T>
V loaded(const T* from) {
  V numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

// Sums that each part of the vectors adds up for itself, zero at first. `join` adds those of other parts to the first
// part's, which are the result, always in the same order.
struct PartSums {
  Tensor result;
  int64_t parts, bytes;
  Buffer<char> others;  // (parts - 1, ...)

  PartSums(int64_t parts, const std::vector<int64_t>& sizes, ScalarType type)
      : result(empty(sizes.data(), int64_t(sizes.size()), type)),
        parts(parts),
        bytes(result.numel() * size_of(type)),
        others((parts - 1) * bytes) {
    result.zero();
    if (parts > 1) others.tensor.zero();
  }
  // The sums of a part; null where they have no numbers.
  void* of(int64_t part) {
    if (bytes == 0) return nullptr;
    return part == 0 ? result.mutable_data_ptr() : others.data() + (part - 1) * bytes;
  }
  void join() {
    if (parts == 1 || bytes == 0) return;
    switch (result.scalar_type()) {
      case ScalarType::Long: return join_as<int64_t>();
      case ScalarType::Double: return join_as<double>();
      default: return join_as<float>();
    }
  }

 private:
  template <class T>
  void join_as() {
    const int64_t count = result.numel();
    for_parts(threads_for(double(parts * count)), count, [&](int64_t, Span span) {
      auto* sums = static_cast<T*>(of(0));
      for (int64_t part = 1; part < parts; ++part) {
        const auto* own = static_cast<const T*>(of(part));
        for_numbers<T>(span, [=](int64_t i, auto number) {
          number = loaded<decltype(number)>(sums + i) + loaded<decltype(number)>(own + i);
          std::memcpy(sums + i, &number, sizeof number);
        });
      }
    });
  }
};

// z, contiguous or with its channels at channel_dim >= 0 adjacent; codebooks (K, D), or of stages (stages, K, D), each
// contiguous, float64 where z is, else float32 -> what vqfast/ops/residual/op.py says of `quantize`. A block of vectors
// is read once: it stays in L2 from its first search to its sums.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> quantize(
    const Tensor& z, const Tensor& codebooks, int64_t channel_dim, bool statistics) {
  const Kernels kernels = best_kernels();
  const ScalarType type = codebooks.scalar_type();
  const bool staged = codebooks.dim() == 3;
  const std::vector<int64_t> stages(staged, staged ? codebooks.size(0) : 1);
  const auto after_stages = [&](std::initializer_list<int64_t> rest) {
    std::vector<int64_t> all(stages);
    all.insert(all.end(), rest);
    return all;
  };
  Tensor indices = empty_indices(z, channel_dim, stages);
  const Pointers books = stages_of(codebooks);
  const ResidualProblem v = problem_of(z, Vectors(z, channel_dim), books, codebooks.size(staged), indices);
  ResidualSearch search(kernels, v, precision_of(codebooks), books, indices);

  const int64_t threads = search.stages.threads(), parts = statistics ? parts_of(v) : threads;
  const int64_t codes = statistics ? v.k : 0, parts_of_thread = parts / threads;
  Tensor quantized = empty_like(z);
  PartSums errors(parts, stages, ScalarType::Double), counts(parts, after_stages({codes}), ScalarType::Long);
  PartSums sums(parts, after_stages({codes, v.d}), type);
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
  for (PartSums* each : {&errors, &counts, &sums}) each->join();

  // Means of the errors, twice: each is a tensor of its own, with gradients of its own.
  const auto losses = [&] {
    Tensor made = empty(stages.data(), int64_t(stages.size()), type);
    const auto* found = static_cast<const double*>(errors.of(0));
    for (int64_t stage = 0; stage < v.stages; ++stage) {
      const double mean = found[stage] / double(v.outer * v.d * v.inner);
      if (type == ScalarType::Double)
        static_cast<double*>(made.mutable_data_ptr())[stage] = mean;
      else
        static_cast<float*>(made.mutable_data_ptr())[stage] = float(mean);
    }
    return made;
  };
  return {std::move(quantized), std::move(indices), losses(), losses(), std::move(counts.result),
          std::move(sums.result)};
}

// z as in `quantize`; codebooks: of each stage, (K, D) contiguous, float64 where z is, else float32 -> the indices of
// `quantize`.
Tensor residual_codes(const Tensor& z, const std::vector<Tensor>& codebooks, int64_t channel_dim) {
  Tensor indices = empty_indices(z, channel_dim, {int64_t(codebooks.size())});
  Pointers books;
  for (const Tensor& book : codebooks) books.push_back(book.const_data_ptr());
  const ResidualProblem v = problem_of(z, Vectors(z, channel_dim), books, codebooks[0].size(0), indices);
  ResidualSearch(best_kernels(), v, precision_of(codebooks[0]), books, indices).run([](int64_t, Span) {});
  return indices;
}

// The gradients of quantized, laid out as z, and of the losses; z, codebooks and indices of `quantize` ->
// - the gradient of z: grad + the sum over stages of the commitment loss's slope * (residual - e);
// - that of the codebooks: the sums of (e - residual) at each code, times the codebook loss's slope.
template <class T>
std::tuple<Tensor, Tensor> gradients(
    const Tensor& grad, const Tensor& grad_codebook, const Tensor& grad_commitment, const Tensor& z,
    const Tensor& codebooks, const Tensor& indices, int64_t channel_dim) {
  const ResidualKernel& kernel = best_kernels().residual;
  const Pointers books = stages_of(codebooks);
  const ResidualProblem v =
      problem_of(z, Vectors(z, channel_dim), books, codebooks.size(codebooks.dim() - 2), indices);
  const auto slopes_of = [&](const Tensor& of_losses) {
    std::vector<T> slopes(v.stages);
    for (int64_t stage = 0; stage < v.stages; ++stage)
      slopes[stage] = static_cast<const T*>(of_losses.const_data_ptr())[stage] * T(2.0 / double(z.numel()));
    return slopes;
  };
  const std::vector<T> to_books = slopes_of(grad_codebook), to_vectors = slopes_of(grad_commitment);
  const bool wanted = std::any_of(to_books.begin(), to_books.end(), [](T slope) { return slope != 0; });
  const int64_t parts = wanted ? parts_of(v) : threads_for(double(z.numel()) * double(v.stages) * 4);
  Tensor grad_z = empty_like(z);
  PartSums sums(parts, {codebooks.sizes(), codebooks.sizes() + codebooks.dim()}, codebooks.scalar_type());
  for_parts(parts, v.outer * v.inner, [&](int64_t part, Span span) {
    kernel.backward(
        v, span, grad.const_data_ptr(), to_vectors.data(), grad_z.mutable_data_ptr(),
        wanted ? sums.of(part) : nullptr);
  });
  if (wanted) {
    sums.join();
    const int64_t count = v.k * v.d;
    auto* found = static_cast<T*>(sums.of(0));
    for (int64_t stage = 0; stage < v.stages; ++stage)
      for_numbers<T>({stage * count, (stage + 1) * count}, [&](int64_t i, auto number) {
        number = loaded<decltype(number)>(found + i) * -to_books[stage];
        std::memcpy(found + i, &number, sizeof number);
      });
  }
  return {std::move(grad_z), std::move(sums.result)};
}

std::tuple<Tensor, Tensor> quantize_backward(
    const Tensor& grad, const Tensor& grad_codebook, const Tensor& grad_commitment, const Tensor& z,
    const Tensor& codebooks, const Tensor& indices, int64_t channel_dim) {
  const auto call = codebooks.scalar_type() == ScalarType::Double ? gradients<double> : gradients<float>;
  return call(grad, grad_codebook, grad_commitment, z, codebooks, indices, channel_dim);
}

}  // namespace

void add_residual(const Ops& ops) {
  ops.add<quantize>(
      "quantize(Tensor z, Tensor codebooks, int channel_dim, bool statistics)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.add<residual_codes>("residual_codes(Tensor z, Tensor[] codebooks, int channel_dim) -> Tensor");
  ops.add<quantize_backward>(
      "quantize_backward(Tensor grad, Tensor grad_codebook, Tensor grad_commitment, Tensor z, Tensor codebooks,"
      " Tensor indices, int channel_dim) -> (Tensor, Tensor)");
}

}  // namespace vqfast
