// How nearest.cpp takes vectors: about the codes' pivot, rounded, side by side.
#pragma once

#include "nearest/codes.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The arithmetic that x - p needs to round only once: float32 up to float32, else float64.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

struct Candidate {
  float high;  // no less than its t
  int32_t code;
};

struct Row {
  int64_t x, out;   // where it is, where its index goes
  float square;     // of its length about the pivot; -inf where its units are its own, NaN where it isn't finite
  float low;        // no more than the largest t
  float far;        // no less than the t of any code that the products leave out
  int32_t count;    // of candidates, in rising order; kAll: every code
  Candidate* candidates;
  const Row* same;  // an equal row, whose index is this one's too
};
constexpr int32_t kAll = -1;

constexpr int kMostPart = 256;

// to[i * width + n] = scale[n] * (vector n [i] - pivot[i]) for `count` vectors of d <= kMostPart channels; vector(n)
// points to the n-th.
template <class T, class C, class Vector>
void centre_into(
    float* to, int width, int64_t count, Vector vector, int64_t stride, int d, const C* pivot, const C* scales) {
  typedef float Four __attribute__((vector_size(16)));
  for (int64_t n = 0; n < count; n += 4) {
    float part[4][kMostPart];
    const int lines = int(least(4, count - n));
    for (int l = 0; l < lines; ++l) {
      const T* x = vector(n + l);
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
      const Four rows[4] = {
          __builtin_shufflevector(ab, ce, 0, 1, 4, 5), __builtin_shufflevector(ab, ce, 2, 3, 6, 7),
          __builtin_shufflevector(ab2, ce2, 0, 1, 4, 5), __builtin_shufflevector(ab2, ce2, 2, 3, 6, 7)};
      for (int j = 0; j < 4; ++j) memcpy(out + (i + j) * width, &rows[j], 16);
    }
    for (; i < d; ++i)
      for (int l = 0; l < lines; ++l) out[i * width + l] = part[l][i];
  }
}

// Pairs of bf16 of each column's consecutive numbers, and the squared lengths of what the rounding left out.
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

// As `pair_up`, four integers of each column in its own units.
void quantize(const float* from, int width, int64_t d, const float* unit, float* to, float* residuals) {
  const Vec whole = Vec{} + 0x1.8p23f;  // added to a number, leaves its nearest integer in the last bits
  for (int n = 0; n < width; n += kLanes) {
    const Vec units = load(unit + n), inverse = 1 / units;
    Vec squares = load(residuals + n);
    for (int64_t i = 0; i < d; i += 4) {
      WideBits bits = WideBits{} + 0x80808080;
      for (int j = 0; j < 4 && i + j < d; ++j) {
        const Vec value = load(from + (i + j) * width + n), integer = value * inverse + whole;
        const Vec left = value - (integer - whole) * units;
        squares += left * left;
        bits ^= ((WideBits)integer & 0xff) << 8 * j;
      }
      store(bits, to + i / 4 * width + n);
    }
    store(squares, residuals + n);
  }
}

// Where rows begin .. begin + count of a codebook are.
void locate(const Problem& p, const Codebook& book, int64_t begin, int64_t count, Row* rows) {
  int64_t at[64], rest = begin, x = book.x, out = book.out;
  for (int64_t a = p.num_axes - 1; a >= 0; --a) {
    at[a] = rest % p.axes[a].size;
    rest /= p.axes[a].size;
    x += at[a] * p.axes[a].x_stride;
    out += at[a] * p.axes[a].out_stride;
  }
  for (int64_t n = 0; n < count; ++n) {
    rows[n].x = x;
    rows[n].out = out;
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

// Lists a row unless it equals the last one that is listed; returns how many are.
template <class T>
int64_t list(const Problem& p, Row& row, Row** listed, int64_t count) {
  const auto number = [&](const Row& of, int64_t i) {
    return typename Compute<T>::type(static_cast<const T*>(p.x)[of.x + i * p.d_stride]);
  };
  int64_t same = 0;
  for (Row* last = count ? listed[count - 1] : nullptr; last && same < p.d; ++same)
    if (number(row, same) != number(*last, same)) break;
  if (count && same == p.d)
    row.same = listed[count - 1];
  else
    listed[count++] = &row;
  return count;
}

// Whether a vector's numbers are finite.
template <class T>
bool finite_row(const Problem& p, const T* x) {
  for (int64_t i = 0; i < p.d; ++i)
    if (!__builtin_isfinite(double(typename Compute<T>::type(x[i * p.d_stride])))) return false;
  return true;
}

// A power of two that brings a vector's length about the pivot to 2^59 or more, but below 2^60; or NaN.
template <class T, class C>
C scale_of_long(const Problem& p, const T* x, const C* pivot) {
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

// Up to kTile rows as `width` columns, rounded to pairs where a step takes those, and their lengths. A row that isn't
// finite has no candidates, one that float32 doesn't hold about the pivot all.
template <class T, class Product>
void pack_rows(
    const Problem& p, const Codebook& book, Row** rows, int64_t count, int width, float* packed, float* length,
    float* residual, float* unit) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x);
  const C* pivot = static_cast<const C*>(book.pivot);
  constexpr int kPart = Product::kPer == 4 ? kMostPart : 64;  // channels that are packed at a time, in L1
  bool adjacent = count == width;
  for (int64_t r = 1; r < count; ++r) adjacent &= rows[r]->x == rows[0]->x + r;
  C scales[kTile];
  float single[kPart * kTile];
  if (count < width) memset(single, 0, sizeof single);
  const auto read = [&](int64_t first, int d) {
    const T* from = x + first * p.d_stride;
    if (adjacent)
      for (int64_t i = 0; i < d; ++i)
        for (int r = 0; r < width; ++r)
          single[i * width + r] = float((C(from[rows[0]->x + i * p.d_stride + r]) - pivot[first + i]) * scales[r]);
    else
      centre_into<T>(
          single, width, count, [&](int64_t r) { return from + rows[r]->x; }, p.d_stride, d, pivot + first, scales);
  };
  const auto pack = [&] {
    for (int r = 0; r < width; ++r) length[r] = residual[r] = unit[r] = 0;
    for (int64_t first = 0; first < p.d; first += kPart) {
      const int d = int(least(kPart, p.d - first));
      read(first, d);
      for (int i = 0; i < d; ++i)
        for (int r = 0; r < width; ++r) {
          const float value = single[i * width + r], size = __builtin_fabsf(value);
          length[r] += value * value;
          if constexpr (Product::kPer == 4) unit[r] = size > unit[r] ? size : unit[r];
        }
      if constexpr (Product::kPer == 2) pair_up(single, width, d, packed + first / 2 * width, residual);
      if constexpr (Product::kPer == 1) memcpy(packed + first * width, single, sizeof(float) * d * width);
    }
    if constexpr (Product::kPer == 4) {
      for (int r = 0; r < width; ++r) unit[r] = unit_of(unit[r]);
      for (int64_t first = 0; first < p.d; first += kPart) {
        const int d = int(least(kPart, p.d - first));
        if (p.d > kPart) read(first, d);
        quantize(single, width, d, unit, packed + first / 4 * width, residual);
      }
    }
  };
  for (int r = 0; r < width; ++r) scales[r] = C(book.scale);
  pack();
  bool longer = false;  // some row
  for (int64_t r = 0; r < count; ++r) {
    Row& row = *rows[r];
    row.square = length[r], row.count = 0;
    if (length[r] <= 0x1p120f) continue;
    longer = true, row.square = -__builtin_inff();
    if (finite_row(p, x + row.x))
      scales[r] = scale_of_long(p, x + row.x, pivot), row.count = scales[r] > 0 ? 0 : kAll;
    else
      row.square = __builtin_nanf("");
  }
  if (longer) pack();
  for (int r = 0; r < width; ++r) length[r] = __builtin_sqrtf(length[r]), residual[r] = __builtin_sqrtf(residual[r]);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
