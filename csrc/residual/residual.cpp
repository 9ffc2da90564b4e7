// The training step once the codes are found: one pass over the vectors forward, one backward, whatever the number of
// stages.
//
// Floor: read z, write quantized; read z and its gradient, write another: 5 x the bytes of a number. Vectors whose
// channels aren't adjacent go through a tile in L1, so that codes and sums are always read along their rows. Each stage
// adds the read of a code, 4 bytes a number, and of a sum that is written back, 8 bytes, each way: from the last cache,
// which at many stages is what counts.

#include "residual/residual.h"

#include "simd/floats.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kPositions = 128, kChannels = 64;

template <class T>
using Vector = typename Accumulate<T>::Product::Vector;
template <class T>
using Number = typename Accumulate<T>::Product::Element;
template <class T>
using Tile = Number<T>[kPositions][kChannels];
template <class T>
constexpr int64_t kWidth = sizeof(Vector<T>) / sizeof(Number<T>);

// Some vectors side by side: where they begin, their number, and the distances of vectors and of channels.
struct Block {
  int64_t at, count, first, position, channel;
};

// The block from vector n on.
Block locate(const Assigned& v, int64_t n, int64_t end) {
  if (v.inner == 1) return {n * v.d, least(kPositions, end - n), n, v.d, 1};
  const int64_t a = n / v.inner, p = n % v.inner;
  return {a * v.d * v.inner + p, least(kPositions, least(v.inner - p, end - n)), n, 1, v.inner};
}

// `count` channels of a block's vectors; up to the next whole register those beyond are 0.
template <class T>
void read(const T* from, const Block& b, int64_t first, int64_t count, Tile<T>& to) {
  using V = Vector<T>;
  from += b.at + first * b.channel;
  if (b.channel == 1) {
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; i += kWidth<T>)
        store(load_part<V>(from + p * b.position + i, count - i), to[p] + i);
    return;
  }
  for (int64_t i = 0; i < count; i += kWidth<T>)
    for (int64_t p = 0; p < b.count; p += kWidth<T>) {
      V rows[kWidth<T>];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<T>; ++l)
        rows[l] = i + l < count ? load_part<V>(from + (i + l) * b.channel + p, b.count - p) : V{};
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<T>; ++l) store(rows[l], to[p + l] + i);
    }
}

template <class T>
void write(const Tile<T>& from, const Block& b, int64_t first, int64_t count, T* to) {
  using V = Vector<T>;
  to += b.at + first * b.channel;
  if (b.channel == 1) {
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; i += kWidth<T>)
        store_part<V>(load(from[p] + i), to + p * b.position + i, count - i);
    return;
  }
  for (int64_t i = 0; i < count; i += kWidth<T>)
    for (int64_t p = 0; p < b.count; p += kWidth<T>) {
      V rows[kWidth<T>];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<T>; ++l) rows[l] = p + l < b.count ? load(from[p + l] + i) : V{};
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kWidth<T>; ++l)
        if (i + l < count) store_part(rows[l], to + (i + l) * b.channel + p, b.count - p);
    }
}

// Which of all stages' codes a vector's is.
int64_t slot(const Assigned& v, int64_t n, int64_t stage) { return stage * v.k + v.indices[n * v.stages + stage]; }

template <class T>
const Number<T>* code_of(const Assigned& v, int64_t n, int64_t stage) {
  return static_cast<const Number<T>*>(v.codes[stage]) + v.indices[n * v.stages + stage] * v.d;
}

template <class T>
void gather(const Assigned& v, Span span, void* to) {
  auto* rows = static_cast<Number<T>*>(to);
  Tile<T> tile;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      read(static_cast<const T*>(v.z), b, first, count, tile);
      for (int64_t p = 0; p < b.count; ++p) memcpy(rows + p * v.d + first, tile[p], sizeof(Number<T>) * count);
    }
    rows += b.count * v.d;
    n += b.count;
  }
}

template <class T>
void subtract(const Assigned& v, Span span, int64_t stage, void* from) {
  auto* rows = static_cast<Number<T>*>(from);
  for (int64_t n = span.begin; n < span.end; ++n, rows += v.d) {
    const Number<T>* code = code_of<T>(v, n, stage);
    for (int64_t i = 0; i < v.d; ++i) rows[i] -= code[i];
  }
}

Wide wide(Wide x) { return x; }
Wide wide(Vec x) {  // its halves together
  typedef float Narrow __attribute__((vector_size(sizeof(Vec) / 2)));
  Narrow halves[2];
  memcpy(halves, &x, sizeof x);
  return __builtin_convertvector(halves[0], Wide) + __builtin_convertvector(halves[1], Wide);
}

// From the first stage on that was given a vector which isn't finite, everything of that vector is NaN.
template <class T>
void spoil(const Assigned& v, const Block& b, int64_t p, T* quantized, double* errors, Number<T>* sums) {
  const int64_t n = b.first + p;
  int64_t bad = v.stages;
  for (int64_t i = 0; i < v.d; ++i) {
    auto residual = Number<T>(static_cast<const T*>(v.z)[b.at + p * b.position + i * b.channel]);
    for (int64_t stage = 0; stage < bad; ++stage) {
      if (!__builtin_isfinite(residual)) bad = stage;
      residual -= code_of<T>(v, n, stage)[i];
    }
  }
  if (bad == v.stages) return;
  const auto nan = Vector<T>{} + __builtin_nanf("");
  for (int64_t i = 0; i < v.d; ++i) store_part(nan, quantized + b.at + p * b.position + i * b.channel, 1);
  for (int64_t stage = bad; stage < v.stages; ++stage) {
    errors[stage] = __builtin_nan("");
    for (int64_t i = 0; sums && stage > bad && i < v.d; ++i) sums[slot(v, n, stage) * v.d + i] = nan[0];
  }
}

template <class T>
void forward(const Assigned& v, Span span, void* to, double* errors, int64_t* counts, void* adding) {
  using V = Vector<T>;
  auto* quantized = static_cast<T*>(to);
  auto* sums = static_cast<Number<T>*>(adding);
  Tile<T> residual, out;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    bool finite = true;
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      read(static_cast<const T*>(v.z), b, first, count, residual);
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        Wide error = {};
        for (int64_t p = 0; p < b.count; ++p) {
          const Number<T>* code = code_of<T>(v, n + p, stage) + first;
          const int64_t at = slot(v, n + p, stage);
          Number<T>* sum = sums ? sums + at * v.d + first : nullptr;
          if (counts && first == 0) ++counts[at];
          V squares = {};
          for (int64_t i = 0; i < count; i += kWidth<T>) {
            const V given = load(residual[p] + i), e = load_part<V>(code + i, count - i), left = given - e;
            if (sum) store_part(load_part<V>(sum + i, count - i) + given, sum + i, count - i);
            store(stage ? load(out[p] + i) + e : e, out[p] + i);
            store(left, residual[p] + i);
            squares += left * left;
          }
          error += wide(squares);
        }
        const double here = total(error);
        errors[stage] += here;
        finite &= __builtin_isfinite(here) != 0;
      }
      write(out, b, first, count, quantized);
    }
    for (int64_t p = 0; !finite && p < b.count; ++p) spoil(v, b, p, quantized, errors, sums);
    n += b.count;
  }
}

template <class T>
void backward(const Assigned& v, Span span, const void* given, const void* steep, void* to, void* adding) {
  using V = Vector<T>;
  const auto* slopes = static_cast<const Number<T>*>(steep);
  auto* away = static_cast<Number<T>*>(adding);
  Tile<T> residual, grad;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      read(static_cast<const T*>(v.z), b, first, count, residual);
      read(static_cast<const T*>(given), b, first, count, grad);
      for (int64_t stage = 0; stage < v.stages; ++stage)
        for (int64_t p = 0; p < b.count; ++p) {
          const Number<T>* code = code_of<T>(v, n + p, stage) + first;
          Number<T>* sum = away ? away + slot(v, n + p, stage) * v.d + first : nullptr;
          for (int64_t i = 0; i < count; i += kWidth<T>) {
            const V left = load(residual[p] + i) - load_part<V>(code + i, count - i);
            if (sum) store_part(load_part<V>(sum + i, count - i) + left, sum + i, count - i);
            store(load(grad[p] + i) + slopes[stage] * left, grad[p] + i);
            store(left, residual[p] + i);
          }
        }
      write(grad, b, first, count, static_cast<T*>(to));
    }
    n += b.count;
  }
}

}  // namespace

extern const QuantizeKernel quantize_kernel;
#define VQFAST_ANY_TYPE(function) \
  [](const Assigned& v, auto... rest) { with_type(v.type, [&](auto x) { function<decltype(x)>(v, rest...); }); }
const QuantizeKernel quantize_kernel{
    VQFAST_ANY_TYPE(gather), VQFAST_ANY_TYPE(subtract), VQFAST_ANY_TYPE(forward), VQFAST_ANY_TYPE(backward)};

}  // namespace vqfast::VQFAST_ISA
