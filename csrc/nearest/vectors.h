// The vectors of a search: about the codes' pivot, rounded, side by side as a tile's columns.
#pragma once

#include "nearest/codes.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The type in which x - pivot is rounded once at most: float32 for all narrower types, else float64.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// A code that may be nearest to a vector, and a bound from above of its t (nearest.cpp).
struct Candidate {
  float high;
  int32_t code;
};

// What a search knows of one vector.
struct Vector {
  int64_t x, out;         // where it is in x, and where its index goes in `out`
  float square;           // |a~|^2; -inf where it has a scale of its own, NaN where it isn't finite
  float low;              // a bound from below of the largest t
  float left_out_high;    // a bound from above of the t of all codes that aren't multiplied
  int32_t count;          // of its candidates, or kAll
  Candidate* candidates;  // (max_candidates), in rising order of codes
  const Vector* same;     // an equal vector with the same index, or null
};
constexpr int32_t kAll = -1;  // every code is a candidate

constexpr int kPackedChannels = 256;  // channels that are packed at a time

// to[i * width + n] = scales[n] * (vector n [i] - pivot[i]) for `count` vectors of d <= kPackedChannels channels, which
// are `stride` apart. pointer(n) points to the first channel of vector n.
template <class T, class C, class Pointer>
void centre_into(
    float* to, int width, int64_t count, Pointer pointer, int64_t stride, int d, const C* pivot, const C* scales) {
  typedef float Four __attribute__((vector_size(16)));
  for (int64_t n = 0; n < count; n += 4) {
    float part[4][kPackedChannels];
    const int lines = int(min(4, count - n));
    for (int l = 0; l < lines; ++l) {
      const T* x = pointer(n + l);
      const C scale = scales[n + l];
      if (stride == 1)
        for (int i = 0; i < d; ++i) part[l][i] = float((C(x[i]) - pivot[i]) * scale);
      else
        for (int i = 0; i < d; ++i) part[l][i] = float((C(x[i * stride]) - pivot[i]) * scale);
    }
    float* out = to + n;
    int i = 0;
    for (; lines == 4 && i + 4 <= d; i += 4) {  // transpose 4 x 4
      Four a, b, c, e;
      memcpy(&a, &part[0][i], 16), memcpy(&b, &part[1][i], 16);
      memcpy(&c, &part[2][i], 16), memcpy(&e, &part[3][i], 16);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four ce = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce2 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      const Four columns[4] = {
          __builtin_shufflevector(ab, ce, 0, 1, 4, 5), __builtin_shufflevector(ab, ce, 2, 3, 6, 7),
          __builtin_shufflevector(ab2, ce2, 0, 1, 4, 5), __builtin_shufflevector(ab2, ce2, 2, 3, 6, 7)};
      for (int j = 0; j < 4; ++j) memcpy(out + (i + j) * width, &columns[j], 16);
    }
    for (; i < d; ++i)
      for (int l = 0; l < lines; ++l) out[i * width + l] = part[l][i];
  }
}

// Rounds (d, width) numbers to bfloat16, two channels a word, (ceil(d / 2), width). Adds the squares of what rounding
// leaves out to residuals (width).
void pair_up(const float* from, int width, int64_t d, float* to, float* residuals) {
  for (int64_t i = 0; i < d; i += 2, from += 2 * width, to += width)
    for (int n = 0; n < width; ++n) {
      uint32_t bits[2] = {};
      for (int j = 0; j < 2; ++j) {
        const float value = i + j < d ? from[j * width + n] : 0;
        const uint32_t exact = __builtin_bit_cast(uint32_t, value);
        bits[j] = (exact + 0x7fff + (exact >> 16 & 1)) & 0xffff0000;
        const float left = value - __builtin_bit_cast(float, bits[j]);
        residuals[n] += left * left;
      }
      to[n] = __builtin_bit_cast(float, bits[0] >> 16 | bits[1]);
    }
}

// As `pair_up` to integers of `unit` (width) each, with the arithmetic's offset added.
template <class Arithmetic>
void quantize(const float* from, int width, int64_t d, const float* unit, float* to, float* residuals) {
  constexpr int kPacking = Arithmetic::kPacking, kBits = 32 / kPacking;
  constexpr uint32_t kMask = (1u << kBits) - 1, kOffsets = Arithmetic::kOffset * (0xffffffffu / kMask);
  const Floats whole = Floats{} + 0x1.8p23f;  // a sum with it has the nearest integer in its last bits
  for (int n = 0; n < width; n += kLanes) {
    const Floats units = load(unit + n), inverse = 1 / units;
    Floats squares = load(residuals + n);
    for (int64_t i = 0; i < d; i += kPacking) {
      Bits32 bits = Bits32{} + kOffsets;
      for (int j = 0; j < kPacking && i + j < d; ++j) {
        const Floats value = load(from + (i + j) * width + n), integer = value * inverse + whole;
        const Floats left = value - (integer - whole) * units;
        squares += left * left;
        bits ^= ((Bits32)integer & kMask) << kBits * j;
      }
      store(bits, to + i / kPacking * width + n);
    }
    store(squares, residuals + n);
  }
}

// Sets x and out of `count` vectors of a codebook, from number `begin` on.
void locate(const NearestProblem& p, const Codebook& book, int64_t begin, int64_t count, Vector* vectors) {
  int64_t at[64], rest = begin, x = book.x, out = book.out;
  for (int64_t a = p.num_axes - 1; a >= 0; --a) {
    at[a] = rest % p.axes[a].size;
    rest /= p.axes[a].size;
    x += at[a] * p.axes[a].x_stride;
    out += at[a] * p.axes[a].out_stride;
  }
  for (int64_t n = 0; n < count; ++n) {
    vectors[n].x = x;
    vectors[n].out = out;
    for (int64_t a = p.num_axes - 1; a >= 0; --a) {
      const Axis& axis = p.axes[a];
      x += axis.x_stride;
      out += axis.out_stride;
      if (++at[a] < axis.size) break;
      x -= axis.size * axis.x_stride;
      out -= axis.size * axis.out_stride;
      at[a] = 0;
    }
  }
}

// Appends a vector to a list of `count`, unless it equals the last one there: then it is `same`. Returns the new count.
template <class T>
int64_t list(const NearestProblem& p, Vector& vector, Vector** listed, int64_t count) {
  const auto number = [&](const Vector& of, int64_t i) {
    return typename Compute<T>::type(static_cast<const T*>(p.x)[of.x + i * p.d_stride]);
  };
  int64_t same = 0;
  for (Vector* last = count ? listed[count - 1] : nullptr; last && same < p.d; ++same)
    if (number(vector, same) != number(*last, same)) break;
  if (count && same == p.d)
    vector.same = listed[count - 1];
  else
    listed[count++] = &vector;
  return count;
}

// Whether all numbers of a vector are finite.
template <class T>
[[gnu::noinline]] bool all_finite(const NearestProblem& p, const T* x) {
  for (int64_t i = 0; i < p.d; ++i)
    if (!__builtin_isfinite(double(typename Compute<T>::type(x[i * p.d_stride])))) return false;
  return true;
}

// The power of two that brings |x - pivot| into [2^59, 2^60); NaN where the difference overflows.
template <class T, class C>
[[gnu::noinline]] C scale_of_long_vector(const NearestProblem& p, const T* x, const C* pivot) {
  C largest = 0;
  double squares = 0;
  const auto away = [&](int64_t i) { return C(__builtin_fabs(C(x[i * p.d_stride]) - pivot[i])); };
  for (int64_t i = 0; i < p.d; ++i) largest = largest > away(i) ? largest : away(i);
  if (!__builtin_isfinite(largest)) return C(__builtin_nan(""));
  const int exponent = __builtin_ilogb(largest);
  const double near_one = __builtin_ldexp(1, -exponent);
  for (int64_t i = 0; i < p.d; ++i) squares += double(away(i)) * near_one * (double(away(i)) * near_one);
  return C(__builtin_ldexp(1, 59 - exponent - __builtin_ilogb(__builtin_sqrt(squares))));
}

// to[i * width + r] = scales[r] * (vector r [first + i] - pivot[first + i]) for d channels; `adjacent`: vectors lie side
// by side in x. A function of its own, which all arithmetics share.
template <class T, class C>
[[gnu::noinline]] void read_vectors(
    const NearestProblem& p, Vector** vectors, int64_t count, int width, bool adjacent, int64_t first, int d,
    const C* pivot, const C* __restrict scales, float* __restrict to) {
  const T* from = static_cast<const T*>(p.x) + first * p.d_stride;
  if (adjacent)
    for (int64_t i = 0; i < d; ++i) {
      const T* row = from + vectors[0]->x + i * p.d_stride;
      const C centre = pivot[first + i];
      for (int r = 0; r < width; ++r) to[i * width + r] = float((C(row[r]) - centre) * scales[r]);
    }
  else
    centre_into<T>(
        to, width, count, [&](int64_t r) { return from + vectors[r]->x; }, p.d_stride, d, pivot + first, scales);
}

// Packs up to kTileColumns vectors as `width` columns, (ceil(D / packing), width) words, rounded as the arithmetic
// wants them; to tally them, their float32 numbers, (D, width). Sets length |a~|, residual |a~ - a^| and, for integers,
// unit, or for tallies the size of the largest component, each (width); and each vector's square and count: 0, or kAll
// where its differences from the pivot overflow. A vector that isn't finite has no candidates.
template <class T, class Arithmetic>
void pack_vectors(const NearestProblem& p, const Codebook& book, Vector** vectors, int64_t count, int width,
                  float* packed, float* length, float* residual, float* unit) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x);
  const C* pivot = static_cast<const C*>(book.pivot);
  constexpr bool kUnits = kIntegers<Arithmetic> || kTallies<Arithmetic>;
  constexpr int kPart = kUnits ? kPackedChannels : 64;  // channels whose float32 numbers stay in L1
  bool adjacent = count == width;
  for (int64_t r = 1; r < count; ++r) adjacent &= vectors[r]->x == vectors[0]->x + r;
  C scales[kTileColumns];
  float single[kPart * kTileColumns];
  if (count < width) memset(single, 0, sizeof single);
  const auto read = [&](int64_t first, int d) {
    read_vectors<T>(p, vectors, count, width, adjacent, first, d, pivot, scales, single);
  };
  const auto pack = [&] {
    for (int r = 0; r < width; ++r) length[r] = residual[r] = unit[r] = 0;
    for (int64_t first = 0; first < p.d; first += kPart) {
      const int d = int(min(kPart, p.d - first));
      read(first, d);
      for (int i = 0; i < d; ++i)
        for (int r = 0; r < width; ++r) {
          const float value = single[i * width + r], size = __builtin_fabsf(value);
          length[r] += value * value;
          if constexpr (kUnits) unit[r] = size > unit[r] ? size : unit[r];
        }
      if constexpr (!kUnits && Arithmetic::kPacking == 2)
        pair_up(single, width, d, packed + first / 2 * width, residual);
      if constexpr (Arithmetic::kPacking == 1) memcpy(packed + first * width, single, sizeof(float) * d * width);
    }
    if constexpr (kTiled<Arithmetic>) {
      const int64_t words = ceil_div(p.d, Arithmetic::kPacking);
      memset(packed + words * width, 0, sizeof(float) * size_t((words_of<Arithmetic>(p.d) - words) * width));
    }
    if constexpr (kTallies<Arithmetic>) memcpy(packed, single, sizeof(float) * size_t(p.d) * size_t(width));
    if constexpr (kIntegers<Arithmetic>) {
      for (int r = 0; r < width; ++r) unit[r] = unit_of(unit[r], Arithmetic::most(p.d));
      for (int64_t first = 0; first < p.d; first += kPart) {
        const int d = int(min(kPart, p.d - first));
        if (p.d > kPart) read(first, d);
        quantize<Arithmetic>(single, width, d, unit, packed + first / Arithmetic::kPacking * width, residual);
      }
    }
  };
  for (int r = 0; r < width; ++r) scales[r] = C(book.scale);
  pack();
  bool longer = false;  // whether some vector needs a scale of its own
  for (int64_t r = 0; r < count; ++r) {
    Vector& vector = *vectors[r];
    vector.square = length[r], vector.count = 0;
    if (length[r] <= 0x1p120f) continue;
    longer = true, vector.square = -__builtin_inff();
    if (all_finite(p, x + vector.x))
      scales[r] = scale_of_long_vector(p, x + vector.x, pivot), vector.count = scales[r] > 0 ? 0 : kAll;
    else
      vector.square = __builtin_nanf("");
  }
  if (longer) pack();
  for (int r = 0; r < width; ++r) length[r] = __builtin_sqrtf(length[r]), residual[r] = __builtin_sqrtf(residual[r]);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
