// How nearest.cpp takes codes: about a pivot, rounded, in groups, each with what bounds its error.
#pragma once

#include "simd/floats.h"
#include "nearest/nearest.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kMostIntegers = 1024;     // channels of vectors that int8 pays for
constexpr int64_t kMostChannels = 1 << 17;  // of vectors that a bound holds for
constexpr float kFar = 0x1p30f;             // length of a code that is taken into the products, at the most

int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : least(x, high); }

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

// Whether two codes are the same, bit by bit.
template <class C>
bool same_code(const Problem& p, const Codebook& book, int64_t k, int64_t other) {
  const C *codes = static_cast<const C*>(book.codes), *lengths = static_cast<const C*>(book.lengths);
  return !__builtin_memcmp(codes + k * p.d, codes + other * p.d, size_t(p.d) * sizeof(C)) &&
         (!lengths || lengths[k] == lengths[other]);
}

// The largest component of a difference.
template <class C>
C apart(const C* a, const C* b, int64_t d) {
  constexpr int kWidth = sizeof(Vec) / sizeof(C);
  typedef C Numbers __attribute__((vector_size(sizeof(Vec))));
  Numbers most = {};
  C largest = 0;
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    Numbers away, from;
    memcpy(&away, a + i, sizeof away), memcpy(&from, b + i, sizeof from);
    away -= from;
    away = away < 0 ? -away : away;
    most = away > most ? away : most;
  }
  for (int lane = 0; lane < kWidth; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  for (; i < d; ++i) {
    const C away = a[i] - b[i], distance = away < 0 ? -away : away;
    largest = distance > largest ? distance : largest;
  }
  return largest;
}

// pivot: the mean of what lies together in a sample of finite codes; scale: 2^-exponent of its largest component about
// that. Any pivot and scale are right, these make the bound small: codes far away, even most of them, must not matter.
template <class C>
void centre(const Problem& p, Codebook& book, void* room) {
  const int64_t step = ceil_div(p.k, kSample), own = book.lengths ? p.d : 0;
  const C* sample[kSample];
  C away[kSample][kSample];
  int64_t count = 0;  // of different ones
  for (int64_t k = 0; k < p.k; k += step) {
    const C* code = sample[count] = code_of<C>(p, book, k, static_cast<C*>(room) + count * own);
    bool other = all_finite(code, p.d);
    for (int64_t n = 0; n < count; ++n) other &= (away[n][count] = away[count][n] = apart(code, sample[n], p.d)) > 0;
    away[count][count] = 0;
    count += other;
  }
  // The middle has the nearest quarter nearest.
  C radius = C(__builtin_inf());
  int64_t middle = 0;
  for (int64_t n = 0; n < count; ++n) {
    C nearest[kSample];
    for (int64_t m = 0; m < count; ++m) {
      int64_t at = m;
      for (; at > 0 && nearest[at - 1] > away[n][m]; --at) nearest[at] = nearest[at - 1];
      nearest[at] = away[n][m];
    }
    const C here = nearest[least(count - 1, most(1, (count - 1) / 4))];
    if (here < radius) radius = here, middle = n;
  }
  C* pivot = static_cast<C*>(book.pivot);
  C together = 0, largest = 0;
  for (int64_t i = 0; i < p.d; ++i) pivot[i] = 0;
  for (int64_t n = 0; n < count; ++n) {
    if (away[middle][n] > 8 * radius) continue;
    together += 1;
    for (int64_t i = 0; i < p.d; ++i) pivot[i] += (sample[n][i] - pivot[i]) * (1 / together);
  }
  for (int64_t n = 0; n < count; ++n) {
    const C distance = apart(sample[n], pivot, p.d);
    if (away[middle][n] <= 8 * radius && distance > largest) largest = distance;
  }
  const int limit = sizeof(C) == sizeof(float) ? 126 : 1000;
  const int exponent = largest > 0 ? __builtin_ilogb(largest) : 0;
  book.scale = __builtin_ldexp(1, int(clamp(-exponent, -limit, limit)));
}

// What is added to a row's score for the bound of some codes: length * of_length + residual * of_residual + own.
struct Bound {
  float of_length, of_residual, own;
};

// Of codes of d channels, given the largest squares of their lengths and of what rounding left out.
Bound bound_of(int64_t d, float square, float left_out) {
  const double slope = 1.02 * 0x1p-24 * double(d + 6);
  const double length = __builtin_sqrt(square > 0x1p-46f ? double(square) : 0x1p-46);
  const double rest = __builtin_sqrt(double(left_out));
  return {float(1.02 * (slope * length + rest)), float(1.02 * (length + rest)), float(1.02 * slope * length * length)};
}

// A group of codes beside their numbers.
struct Group {
  Bound bound;
  float bias[kRows];     // -|b|^2 / 2
  float unit[kRows];     // of a code's integers
  int32_t start[kRows];  // what sums of integers begin with
  float far;             // no more than the length of any finite code that is left out; infinity where none is
  bool mixed;            // whether lengths differ so much that each code needs a bound of its own
  Bound own[kRows];      // if mixed
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

// Groups of codes as the tile's rows. Codes that aren't finite get the score -inf, as do those that the last group
// lacks and those so far from the others that float32 doesn't hold both.
template <class Product, class C>
void prepare(const Problem& p, const Codebook& book, Span groups, float* numbers, Group* group, void* room) {
  using Stored = typename Product::Stored;
  constexpr int kPer = sizeof(Vec) / sizeof(Stored);
  const C* pivot = static_cast<const C*>(book.pivot);
  const C scale = C(book.scale);
  for (int64_t g = groups.begin; g < groups.end; ++g, ++group, numbers += group_size(p.d, Product::kPer)) {
    float lengths[kRows], rests[kRows], reach = 0, left_out = 0, shortest = __builtin_inff();  // their squares
    group->far = __builtin_inff();
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
      const bool in = d > 0 && norm <= kFar * kFar;
      if (!in) {
        if (d > 0 && all_finite(code, d)) {
          const float length = 0.98f * (norm < 0x1p120f ? __builtin_sqrtf(norm) : 0x1p60f);
          group->far = length < group->far ? length : group->far;
        }
        for (int64_t i = 0; i < p.d; i += kPer) memset(to + i * kRows, 0, sizeof(Vec));
        norm = residual = 0, integers = Vec{}, unit = 1;
      }
      group->unit[r] = unit;
      group->start[r] = -128 * int32_t(total(integers));
      group->bias[r] = in ? -norm / 2 : -__builtin_inff();
      lengths[r] = norm, rests[r] = residual;
      reach = norm > reach ? norm : reach;
      left_out = residual > left_out ? residual : left_out;
      shortest = in && norm < shortest ? norm : shortest;
    }
    group->bound = bound_of(p.d, reach, left_out);
    group->mixed = reach > (p.d > 1 ? 0x1p10f : 0x1p16f) * shortest && reach > 0x1p10f;
    for (int64_t r = 0; group->mixed && r < kRows; ++r) group->own[r] = bound_of(p.d, lengths[r], rests[r]);
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
