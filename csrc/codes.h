// How nearest.cpp takes codes: about a pivot, rounded, in groups, each with what bounds its error.
#pragma once

#include "floats.h"
#include "nearest.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kMostIntegers = 1024;  // channels of vectors that int8 pays for

int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : least(x, high); }
bool finite(double x) { return __builtin_isfinite(x); }

template <class C>
bool all_finite(const C* x, int64_t count) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !__builtin_isfinite(x[i]);
  return !bad;
}

// What one integer stands for, where the largest component is so long.
float unit_of(float most) {
  const uint32_t bits = (__builtin_bit_cast(uint32_t, most / 127) + 0xffff) & 0xffff0000;
  return most > 0x1p-100f ? __builtin_bit_cast(float, bits) : 1;
}

// Code k; where there are lengths, divided by its own, in `room`.
template <class C>
const C* code_of(const Problem& p, const Codebook& book, int64_t k, void* room) {
  const C* code = static_cast<const C*>(book.codes) + k * p.d;
  if (!book.lengths) return code;
  const C length = static_cast<const C*>(book.lengths)[k];
  C* divided = static_cast<C*>(room);
  for (int64_t i = 0; i < p.d; ++i) divided[i] = code[i] / length;
  return divided;
}

// pivot: the mean of up to 16 finite codes; scale: 2^-exponent of the largest component about it.
// Any pivot and scale are right, these make the bound small.
template <class C>
void centre(const Problem& p, Codebook& book, void* room) {
  C* pivot = static_cast<C*>(book.pivot);
  const int64_t step = ceil_div(p.k, 16);
  C count = 0, largest = 0;
  for (int64_t i = 0; i < p.d; ++i) pivot[i] = 0;
  for (int64_t k = 0; k < p.k; k += step) {
    const C* code = code_of<C>(p, book, k, room);
    if (!all_finite(code, p.d)) continue;
    count += 1;
    for (int64_t i = 0; i < p.d; ++i) pivot[i] += (code[i] - pivot[i]) * (1 / count);
  }
  for (int64_t k = 0; k < p.k; k += step) {
    const C* code = code_of<C>(p, book, k, room);
    for (int64_t i = 0; i < p.d; ++i) {
      const C away = code[i] - pivot[i], distance = away < 0 ? -away : away;
      largest = distance > largest && finite(distance) ? distance : largest;
    }
  }
  const int limit = sizeof(C) == sizeof(float) ? 126 : 1000;
  const int exponent = largest > 0 ? __builtin_ilogb(largest) : 0;
  book.scale = __builtin_ldexp(1, int(clamp(-exponent, -limit, limit)));
}

// What is added to a row's score for the bound of a group of codes: length * of_length + residual * of_residual + own.
struct Bound {
  float of_length, of_residual, own;
};

// A group of codes beside their numbers.
struct Group {
  Bound bound;
  float bias[kRows];     // -|b|^2 / 2
  float unit[kRows];     // of a code's integers
  int32_t start[kRows];  // what sums of integers begin with
  int32_t first_nan;     // the first code with a NaN, or -1
  bool bounded;          // whether there is a bound
};

// Floats that a group's numbers take.
constexpr int64_t group_size(int64_t d, int64_t per) { return ceil_div(d, per * kLanes) * kRows * kLanes; }

// A prepared codebook: its groups, and from a whole cache line on their numbers.
Group* groups_of(const Codebook& book) { return static_cast<Group*>(book.prepared); }
int64_t whole_groups(const Problem& p) { return ceil_div(p.groups, 16) * 16; }
float* codes_of(const Problem& p, const Codebook& book) {
  return reinterpret_cast<float*>(groups_of(book) + whole_groups(p));
}
int64_t prepared(const Problem& p) {
  return whole_groups(p) * int64_t(sizeof(Group)) + p.groups * group_size(p.d, p.per) * int64_t(sizeof(float));
}

// The next numbers of a code about the pivot, 0 past its end.
template <class C>
[[gnu::always_inline]] inline Vec centred(const C* code, const C* pivot, C scale, int64_t count) {
  if constexpr (sizeof(C) == sizeof(float)) return (load_part<Vec>(code, count) - load_part<Vec>(pivot, count)) * scale;
  float part[kLanes] = {};
  const auto fill = [&](int64_t width) {
    for (int64_t i = 0; i < width; ++i) part[i] = float((code[i] - pivot[i]) * scale);
  };
  count >= kLanes ? fill(kLanes) : fill(count);
  return load(part);
}

// Groups of codes as the tile's rows. Infinitely far codes get the score -inf, as do those that the last group lacks.
template <class Product, class C>
void prepare(const Problem& p, const Codebook& book, Span groups, float* numbers, Group* group, void* room) {
  using Stored = typename Product::Stored;
  constexpr int kPer = sizeof(Vec) / sizeof(Stored);
  const C* pivot = static_cast<const C*>(book.pivot);
  const C scale = C(book.scale);
  const double slope = 1.02 * 0x1p-24 * double(p.d + 6);
  for (int64_t g = groups.begin; g < groups.end; ++g, ++group, numbers += group_size(p.d, Product::kPer)) {
    float reach = 0, left_out = 0;
    group->first_nan = -1;
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t k = g * kRows + r, d = k < p.k ? p.d : 0;
      const C* code = k < p.k ? code_of<C>(p, book, k, room) : nullptr;
      Stored* to = reinterpret_cast<Stored*>(numbers) + r * kPer;
      Vec squares = {}, residuals = {}, most = {}, integers = {};
      const auto each = [&](auto f) {
        for (int64_t i = 0; i < d; i += kLanes) f(uint64_t(i), centred(code + i, pivot + i, scale, d - i));
      };
      float unit = 1;
      const auto place = [&](uint64_t i) { return to + i / kPer * kPer * kRows + i % kPer; };
      if constexpr (Product::kPer == 4) {
        float row[kMostIntegers];
        each([&](uint64_t i, Vec value) {
          store(value, row + i);
          squares += value * value;
          most = max(most, max(value, -value));
        });
        unit = unit_of(highest(most));
        const float inverse = 1 / unit;
        for (int64_t i = 0; i < d; i += kLanes) {
          const Vec value = load(row + i), integer = Product::write(value * inverse, place(i));
          const Vec left = value - integer * unit;
          residuals += left * left;
          integers += integer;
        }
      } else {
        each([&](uint64_t i, Vec value) {
          const Vec written = Product::write(value, place(i));
          squares += value * value;
          if constexpr (Product::kPer > 1) residuals += (value - written) * (value - written);
        });
      }
      float norm = total(squares), residual = total(residuals);
      bool out = d == 0;
      if (!(norm <= 0x1p120f) && !all_finite(code, d)) {
        for (int64_t i = 0; i < d; ++i)
          if (group->first_nan < 0 && code[i] != code[i]) group->first_nan = int32_t(k);
        out = true;
      }
      if (out) {
        for (int64_t i = 0; i < p.d; i += kPer) memset(to + i * kRows, 0, sizeof(Vec));
        norm = residual = 0, integers = Vec{}, unit = 1;
      }
      group->unit[r] = unit;
      group->start[r] = norm <= 0x1p120f ? -128 * int32_t(total(integers)) : 0;
      group->bias[r] = out ? -__builtin_inff() : -norm / 2;
      reach = norm > reach ? norm : reach;
      left_out = residual > left_out ? residual : left_out;
    }
    group->bounded = reach <= 0x1p40f && p.d <= 1 << 17;
    const double length = __builtin_sqrt(reach > 0x1p-46 ? double(reach) : 0x1p-46);
    const double rest = __builtin_sqrt(double(left_out));
    group->bound = {
        float(1.02 * (slope * length + rest)), float(1.02 * (length + rest)), float(1.02 * slope * length * length)};
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
