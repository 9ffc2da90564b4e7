// The training step once the codes are found: one pass over the vectors forward, one backward, for any number of
// stages.
//
// Floor: forward reads z and writes quantized, backward reads z and a gradient and writes another: 5 numbers of each
// channel of a vector. Vectors whose channels aren't adjacent go through a buffer in L1, so that codes and sums are
// always read along their channels. Each stage adds, each way, the read of a code, 4 bytes a number, and the read and
// write of a sum, 8 bytes. Those come from the last cache, and with many stages they decide.

#include "residual/residual.h"

#include "simd/floats.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Vectors and channels that are in L1 at a time.
constexpr int64_t kVectors = 128, kChannels = 64;

// For wide numbers of type A: a register of them, its lanes, and a buffer. Only what reads and writes z knows its type.
template <class A>
using Register = typename Accumulate<A>::Arithmetic::Register;
template <class A>
constexpr int64_t kWidth = sizeof(Register<A>) / sizeof(A);
template <class A>
using Staged = A[kVectors][kChannels];

// Some vectors that follow each other at one distance: `first` and their number; where the first begins in z; the
// distances of neighbouring vectors and of neighbouring channels. One of these is 1.
struct Batch {
  int64_t first, count, at, vector_stride, channel_stride;
};

// The largest batch from vector n on, up to `end`.
Batch batch_at(const ResidualProblem& v, int64_t n, int64_t end) {
  if (v.inner == 1) return {n, min(kVectors, end - n), n * v.d, v.d, 1};
  const int64_t o = n / v.inner, p = n % v.inner;
  return {n, min(kVectors, min(v.inner - p, end - n)), o * v.d * v.inner + p, 1, v.inner};
}

// Reads channels [first, first + count) of a batch. Behind them, up to the next whole register, are zeros.
template <class A, class T>
[[gnu::noinline]] void read(const T* from, const Batch& b, int64_t first, int64_t count, Staged<A>& to) {
  using V = Register<A>;
  from += b.at + first * b.channel_stride;
  if (b.channel_stride == 1) {
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; i += kWidth<A>)
        store(load_part<V>(from + p * b.vector_stride + i, count - i), to[p] + i);
    return;
  }
  for (int64_t i = 0; i < count; i += kWidth<A>)
    for (int64_t p = 0; p < b.count; p += kWidth<A>) {
      V rows[kWidth<A>];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<A>; ++l)
        rows[l] = i + l < count ? load_part<V>(from + (i + l) * b.channel_stride + p, b.count - p) : V{};
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<A>; ++l) store(rows[l], to[p + l] + i);
    }
}

// Writes channels [first, first + count) of a batch.
template <class A, class T>
[[gnu::noinline]] void write(const Staged<A>& from, const Batch& b, int64_t first, int64_t count, T* to) {
  using V = Register<A>;
  to += b.at + first * b.channel_stride;
  if (b.channel_stride == 1) {
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; i += kWidth<A>)
        store_part<V>(load(from[p] + i), to + p * b.vector_stride + i, count - i);
    return;
  }
  for (int64_t i = 0; i < count; i += kWidth<A>)
    for (int64_t p = 0; p < b.count; p += kWidth<A>) {
      V rows[kWidth<A>];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<A>; ++l) rows[l] = p + l < b.count ? load(from[p + l] + i) : V{};
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<A>; ++l)
        if (i + l < count) store_part(rows[l], to + (i + l) * b.channel_stride + p, b.count - p);
    }
}

// The same of numbers laid out as z.
template <class A>
void read(const ResidualProblem& v, const void* from, const Batch& b, int64_t first, int64_t count, Staged<A>& to) {
  with_precision_in<A>(v.precision, [&](auto number) {
    read<A>(static_cast<const decltype(number)*>(from), b, first, count, to);
  });
}
template <class A>
void write(const ResidualProblem& v, const Staged<A>& from, const Batch& b, int64_t first, int64_t count, void* to) {
  with_precision_in<A>(v.precision, [&](auto number) {
    write<A>(from, b, first, count, static_cast<decltype(number)*>(to));
  });
}

// The number of vector n's code of a stage among the codes of all stages.
int64_t slot(const ResidualProblem& v, int64_t n, int64_t stage) {
  return stage * v.k + v.indices[n * v.stages + stage];
}

template <class A>
const A* code_of(const ResidualProblem& v, int64_t n, int64_t stage) {
  return static_cast<const A*>(v.codes[stage]) + v.indices[n * v.stages + stage] * v.d;
}

// The functions of ResidualKernel, for wide numbers of type A.
template <class A>
void gather(const ResidualProblem& v, Span span, void* to) {
  auto* vectors = static_cast<A*>(to);
  Staged<A> staged;
  for (int64_t n = span.begin; n < span.end;) {
    const Batch b = batch_at(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = min(kChannels, v.d - first);
      read<A>(v, v.z, b, first, count, staged);
      for (int64_t p = 0; p < b.count; ++p) memcpy(vectors + p * v.d + first, staged[p], sizeof(A) * count);
    }
    vectors += b.count * v.d;
    n += b.count;
  }
}

template <class A>
void subtract(const ResidualProblem& v, Span span, int64_t stage, void* from) {
  auto* vector = static_cast<A*>(from);
  for (int64_t n = span.begin; n < span.end; ++n, vector += v.d) {
    const A* code = code_of<A>(v, n, stage);
    for (int64_t i = 0; i < v.d; ++i) vector[i] -= code[i];
  }
}

// The sum of the halves of a register, in float64.
Doubles halves(Doubles x) { return x; }
Doubles halves(Floats x) {
  typedef float Narrow __attribute__((vector_size(sizeof(Floats) / 2)));
  Narrow half[2];
  memcpy(half, &x, sizeof x);
  return __builtin_convertvector(half[0], Doubles) + __builtin_convertvector(half[1], Doubles);
}

// Vector p of a batch isn't finite at some stage: from that stage on, all that comes of it is NaN.
template <class A, class T>
[[gnu::noinline]] void spoil(
    const ResidualProblem& v, const Batch& b, int64_t p, T* quantized, double* errors, A* sums) {
  const int64_t n = b.first + p;
  int64_t bad = v.stages;
  for (int64_t i = 0; i < v.d; ++i) {
    auto residual = A(static_cast<const T*>(v.z)[b.at + p * b.vector_stride + i * b.channel_stride]);
    for (int64_t stage = 0; stage < bad; ++stage) {
      if (!__builtin_isfinite(residual)) bad = stage;
      residual -= code_of<A>(v, n, stage)[i];
    }
  }
  if (bad == v.stages) return;
  const auto nan = Register<A>{} + __builtin_nanf("");
  for (int64_t i = 0; i < v.d; ++i) store_part(nan, quantized + b.at + p * b.vector_stride + i * b.channel_stride, 1);
  for (int64_t stage = bad; stage < v.stages; ++stage) {
    errors[stage] = __builtin_nan("");
    for (int64_t i = 0; sums && stage > bad && i < v.d; ++i) sums[slot(v, n, stage) * v.d + i] = nan[0];
  }
}

template <class A>
void forward(const ResidualProblem& v, Span span, void* to, double* errors, int64_t* counts, void* adding) {
  using V = Register<A>;
  auto* sums = static_cast<A*>(adding);
  Staged<A> residual, out;
  for (int64_t n = span.begin; n < span.end;) {
    const Batch b = batch_at(v, n, span.end);
    bool finite = true;
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = min(kChannels, v.d - first);
      read<A>(v, v.z, b, first, count, residual);
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        Doubles error = {};
        for (int64_t p = 0; p < b.count; ++p) {
          const A* code = code_of<A>(v, n + p, stage) + first;
          const int64_t at = slot(v, n + p, stage);
          A* sum = sums ? sums + at * v.d + first : nullptr;
          if (counts && first == 0) ++counts[at];
          V squares = {};
          for (int64_t i = 0; i < count; i += kWidth<A>) {
            const V given = load(residual[p] + i), e = load_part<V>(code + i, count - i), left = given - e;
            if (sum) store_part(load_part<V>(sum + i, count - i) + given, sum + i, count - i);
            store(stage ? load(out[p] + i) + e : e, out[p] + i);
            store(left, residual[p] + i);
            squares += left * left;
          }
          error += halves(squares);
        }
        const double here = sum_lanes(error);
        errors[stage] += here;
        finite &= __builtin_isfinite(here) != 0;
      }
      write<A>(v, out, b, first, count, to);
    }
    if (!finite)
      with_precision_in<A>(v.precision, [&](auto number) {
        auto* quantized = static_cast<decltype(number)*>(to);
        for (int64_t p = 0; p < b.count; ++p) spoil<A>(v, b, p, quantized, errors, sums);
      });
    n += b.count;
  }
}

template <class A>
void backward(const ResidualProblem& v, Span span, const void* grad_quantized, const void* steepness, void* to,
              void* adding) {
  using V = Register<A>;
  const auto* slopes = static_cast<const A*>(steepness);
  auto* differences = static_cast<A*>(adding);
  Staged<A> residual, grad;
  for (int64_t n = span.begin; n < span.end;) {
    const Batch b = batch_at(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = min(kChannels, v.d - first);
      read<A>(v, v.z, b, first, count, residual);
      read<A>(v, grad_quantized, b, first, count, grad);
      for (int64_t stage = 0; stage < v.stages; ++stage)
        for (int64_t p = 0; p < b.count; ++p) {
          const A* code = code_of<A>(v, n + p, stage) + first;
          A* sum = differences ? differences + slot(v, n + p, stage) * v.d + first : nullptr;
          for (int64_t i = 0; i < count; i += kWidth<A>) {
            const V left = load(residual[p] + i) - load_part<V>(code + i, count - i);
            if (sum) store_part(load_part<V>(sum + i, count - i) + left, sum + i, count - i);
            store(load(grad[p] + i) + slopes[stage] * left, grad[p] + i);
            store(left, residual[p] + i);
          }
        }
      write<A>(v, grad, b, first, count, to);
    }
    n += b.count;
  }
}

}  // namespace

extern const ResidualKernel residual_kernel;
// The function for the wide numbers of a problem.
#define VQFAST_ANY_PRECISION(function)                                                         \
  [](const ResidualProblem& v, auto... rest) {                                                 \
    with_accumulated(v.precision, [&](auto number) { function<decltype(number)>(v, rest...); }); \
  }
const ResidualKernel residual_kernel{VQFAST_ANY_PRECISION(gather), VQFAST_ANY_PRECISION(subtract),
                                     VQFAST_ANY_PRECISION(forward), VQFAST_ANY_PRECISION(backward)};

}  // namespace vqfast::VQFAST_ISA
