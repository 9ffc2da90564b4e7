// The codes of a search: about a pivot, rounded, in groups of a tile's rows, each with what bounds its error.
#pragma once

#include "nearest/nearest.h"
#include "simd/floats.h"
#include "simd/tiles.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Codes of a group: the rows of a tile.
#if defined(__AMX_TILE__)
constexpr int kGroupRows = kMostRows;
#else
constexpr int kGroupRows = kTileRows;
#endif
// Words of a vector of an arithmetic, and how many there may be. Tiles want whole blocks, with zeros after the last
// number.
template <class Arithmetic>
constexpr int64_t words_of(int64_t d) {
  const int64_t words = ceil_div(d, Arithmetic::kPacking);
  return kTiled<Arithmetic> ? ceil_div(words, kLanes) * kLanes : words;
}
constexpr int64_t most_words(int64_t d) { return max(d, kLanes); }

// Short vectors have an arithmetic of their own (tally.h), where the CPU multiplies integers. It stands in the place of
// the narrowest one, whatever it multiplies.
template <class Arithmetic>
constexpr bool kTallies = false;
#if defined(VQFAST_INTEGERS)
template <int kWordChannels>
struct Tally : Integers {
  static constexpr int kPacking = kMaxPacking, kChannels = kWordChannels;
};
template <int kChannels>
constexpr bool kTallies<Tally<kChannels>> = true;
#endif
constexpr int64_t tallied_channels(int64_t d) { return kMaxPacking == 4 && d > 4 ? 4 : 2; }  // of a word
constexpr int64_t kMaxTalliedChannels = kMaxPacking > 1 ? 16 : 0;
constexpr int64_t kMaxTallied = 176;  // groups of a chunk: the fewer chunks, the better the lows that leave codes out

constexpr int64_t kMaxIntegerChannels = 1024;  // D of vectors for which integers pay
constexpr int64_t kMaxChannels = 1 << 17;      // D of vectors for which the bound holds
constexpr float kMaxLength = 0x1p30f;          // |b| of codes that are multiplied, see nearest.cpp

int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : min(x, high); }

template <class C>
bool all_finite(const C* x, int64_t count) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !__builtin_isfinite(x[i]);
  return !bad;
}

// What one integer of a vector stands for, whose largest component has this size: largest / most, rounded up to
// bfloat16, so that its product with up to most is exact in float32; 1 for a vector of nearly 0.
float unit_of(float largest, float most) {
  const uint32_t bits = (__builtin_bit_cast(uint32_t, largest / most) + 0xffff) & 0xffff0000;
  return largest > 0x1p-100f ? __builtin_bit_cast(float, bits) : 1;
}

// Code k: (D), in the codebook, or in `room` where it is divided by its length.
template <class C>
const C* code_of(const NearestProblem& p, const Codebook& book, int64_t k, void* room) {
  const C* code = static_cast<const C*>(book.codes) + k * p.d;
  if (!book.lengths) return code;
  const C length = static_cast<const C*>(book.lengths)[k];
  C* divided = static_cast<C*>(room);
  for (int64_t i = 0; i < p.d; ++i) divided[i] = code[i] / length;
  return divided;
}

// Whether two codes are equal, bit by bit.
template <class C>
bool same_code(const NearestProblem& p, const Codebook& book, int64_t k, int64_t other) {
  const C *codes = static_cast<const C*>(book.codes), *lengths = static_cast<const C*>(book.lengths);
  return !__builtin_memcmp(codes + k * p.d, codes + other * p.d, size_t(p.d) * sizeof(C)) &&
         (!lengths || lengths[k] == lengths[other]);
}

// The size of the largest component of a - b, both (d).
template <class C>
C max_difference(const C* a, const C* b, int64_t d) {
  constexpr int kWidth = sizeof(Floats) / sizeof(C);
  typedef C Numbers __attribute__((vector_size(sizeof(Floats))));
  Numbers in_lanes = {};
  C largest = 0;
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    Numbers away, from;
    memcpy(&away, a + i, sizeof away), memcpy(&from, b + i, sizeof from);
    away -= from;
    away = away < 0 ? -away : away;
    in_lanes = away > in_lanes ? away : in_lanes;
  }
  for (int lane = 0; lane < kWidth; ++lane) largest = in_lanes[lane] > largest ? in_lanes[lane] : largest;
  for (; i < d; ++i) {
    const C away = a[i] - b[i], distance = away < 0 ? -away : away;
    largest = distance > largest ? distance : largest;
  }
  return largest;
}

// Sets a codebook's pivot, the mean of those finite codes of a sample that lie together, and its scale, the power of
// two that brings their largest component about the pivot near 1. The search is right with any pivot and scale; good
// ones make the bound small. Codes far away, even if they are the majority, must not spoil them.
template <class C>
void centre(const NearestProblem& p, Codebook& book, void* room) {
  const int64_t step = ceil_div(p.k, kSample), own = book.lengths ? p.d : 0;
  const C* sample[kSample];
  C away[kSample][kSample];
  int64_t count = 0;  // of the sample's different codes
  for (int64_t k = 0; k < p.k; k += step) {
    const C* code = sample[count] = code_of<C>(p, book, k, static_cast<C*>(room) + count * own);
    bool other = all_finite(code, p.d);
    for (int64_t n = 0; n < count; ++n)
      other &= (away[n][count] = away[count][n] = max_difference(code, sample[n], p.d)) > 0;
    away[count][count] = 0;
    count += other;
  }
  // The middle is the code whose nearest quarter of the others lies nearest.
  C radius = C(__builtin_inf());
  int64_t middle = 0;
  for (int64_t n = 0; n < count; ++n) {
    C nearest[kSample];
    for (int64_t m = 0; m < count; ++m) {
      int64_t at = m;
      for (; at > 0 && nearest[at - 1] > away[n][m]; --at) nearest[at] = nearest[at - 1];
      nearest[at] = away[n][m];
    }
    const C here = nearest[min(count - 1, max(1, (count - 1) / 4))];
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
    const C distance = max_difference(sample[n], pivot, p.d);
    if (away[middle][n] <= 8 * radius && distance > largest) largest = distance;
  }
  const int limit = sizeof(C) == sizeof(float) ? 126 : 1000;
  const int exponent = largest > 0 ? __builtin_ilogb(largest) : 0;
  book.scale = __builtin_ldexp(1, int(clamp(-exponent, -limit, limit)));
}

// The bound B of a vector's scores with some codes is length * of_length + residual * of_residual + own, where length
// and residual are the vector's: those of a~ and of a~ - a^ in nearest.cpp.
struct Bound {
  float of_length, of_residual, own;
};

// The bound of codes of d channels, given the largest squares of |b~| and of |b~ - b^|.
Bound bound_of(int64_t d, float square, float left_out) {
  const double slope = 1.02 * 0x1p-24 * double(d + 6);
  const double length = __builtin_sqrt(square > 0x1p-46f ? double(square) : 0x1p-46);
  const double rest = __builtin_sqrt(double(left_out));
  return {float(1.02 * (slope * length + rest)), float(1.02 * (length + rest)), float(1.02 * slope * length * length)};
}

// What the search knows of a group of kGroupRows codes, beside their numbers.
struct CodeGroup {
  Bound bound;                // of all its codes
  float bias[kGroupRows];     // -|b~|^2 / 2; -inf for codes that aren't multiplied
  float unit[kGroupRows];     // what one integer of the code stands for
  int32_t start[kGroupRows];  // what the sum of integers begins with, -kOffset * the sum of the code's integers
  float left_out_length;      // no more than |b| of any finite code that isn't multiplied; infinity if there is none
  bool mixed;                 // whether lengths differ so much that each code has its own bound; tallied: is it open
  bool varied;                // of the first group of a chunk: whether some groups have much longer codes than others
  Bound own[kGroupRows];      // those, if mixed
};

// The numbers of a group are words of 32 bits, (ceil(D / (packing * kLanes)), kGroupRows, kLanes), 0 past D. This is
// how many they are.
constexpr int64_t group_size(int64_t d, int64_t packing) {
  return ceil_div(d, packing * kLanes) * kGroupRows * kLanes;
}
// Those of a group of short codes: `tallies` of kGroupRows codes, and later their `exact` numbers (counts.h).
constexpr int64_t tally_size(int64_t d) {
  const int64_t channels = tallied_channels(d);  // with 4 a sum begins with two numbers, with 2 with one
  return kGroupRows * (channels / 2 + ceil_div(d, channels));
}
constexpr int64_t exact_size(int64_t d) { return (d + 1) * kLanes; }
constexpr int64_t short_size(int64_t d, int64_t groups) {
  return ceil_div(groups * tally_size(d), kLanes) * kLanes + groups * exact_size(d);
}

// A prepared codebook: all its groups, padded to whole cache lines, then all their numbers.
CodeGroup* groups_of(const Codebook& book) { return static_cast<CodeGroup*>(book.prepared); }
int64_t padded_groups(const NearestProblem& p) { return ceil_div(p.groups, 16) * 16; }
float* numbers_of(const NearestProblem& p, const Codebook& book) {
  return reinterpret_cast<float*>(groups_of(book) + padded_groups(p));
}
int64_t prepared_bytes(const NearestProblem& p) {
  const int64_t numbers = p.tallied ? short_size(p.d, p.groups) : p.groups * group_size(p.d, p.packing);
  return padded_groups(p) * int64_t(sizeof(CodeGroup)) + numbers * int64_t(sizeof(float));
}

// scale * (code - pivot), in float32, of the first kLanes of `count` numbers; 0 in lanes past the end.
template <class C>
[[gnu::always_inline]] inline Floats centred(const C* code, const C* pivot, C scale, int64_t count) {
  if constexpr (sizeof(C) == sizeof(float))
    return (load_part<Floats>(code, count) - load_part<Floats>(pivot, count)) * scale;
  float part[kLanes] = {};
  const auto fill = [&](int64_t width) {
    for (int64_t i = 0; i < width; ++i) part[i] = float((code[i] - pivot[i]) * scale);
  };
  count >= kLanes ? fill(kLanes) : fill(count);
  return load(part);
}

// Writes groups of codes, rounded as the arithmetic stores them, to `numbers` and `group`. Codes that aren't finite
// get the bias -inf; so do those that the last group lacks, and those longer than kMaxLength, whose float32 products
// might overflow.
template <class Arithmetic, class C>
void prepare(const NearestProblem& p, const Codebook& book, Span groups, float* numbers, CodeGroup* group, void* room) {
  using Stored = typename Arithmetic::Stored;
  constexpr int kWidth = sizeof(Floats) / sizeof(Stored);
  const C* pivot = static_cast<const C*>(book.pivot);
  const C scale = C(book.scale);
  const int64_t padded = ceil_div(p.d, kLanes) * kLanes;
  for (int64_t g = groups.begin; g < groups.end; ++g, ++group, numbers += group_size(p.d, Arithmetic::kPacking)) {
    float norms[kGroupRows], rests[kGroupRows];  // |b~|^2 and |b~ - b^|^2 of each code
    float longest = 0, left_out = 0, shortest = __builtin_inff();  // the extremes of these
    group->left_out_length = __builtin_inff();
    const auto each = [&](int64_t r, auto f) {
      const int64_t k = g * kGroupRows + r;
      if (k >= p.k) return;
      const C* code = code_of<C>(p, book, k, room);
      for (int64_t i = 0; i < p.d; i += kLanes) f(uint64_t(i), centred(code + i, pivot + i, scale, p.d - i));
    };
    // Integers: the unit of a code is known once all its numbers are; the CPU reads the next code's meanwhile.
    constexpr bool kCounts = kIntegers<Arithmetic>;
    float values[kCounts ? kGroupRows * kMaxIntegerChannels : 1], units[kGroupRows];
    if constexpr (kCounts)
      for (int64_t r = 0; r < kGroupRows; ++r) {
        Floats squares = {}, largest = {};
        each(r, [&](uint64_t i, Floats value) {
          store(value, values + r * padded + i);
          squares += value * value;
          largest = max(largest, max(value, -value));
        });
        norms[r] = sum_lanes(squares), units[r] = unit_of(max_lane(largest), Arithmetic::most(p.d));
      }
    for (int64_t r = 0; r < kGroupRows; ++r) {
      const int64_t k = g * kGroupRows + r, d = k < p.k ? p.d : 0;
      Stored* to = reinterpret_cast<Stored*>(numbers) + r * kWidth;
      Floats squares = {}, residuals = {}, integers = {};
      float unit = 1;
      if (p.d % kWidth > 0) memset(to + p.d / kWidth * kWidth * kGroupRows, 0, sizeof(Floats));
      const auto place = [&](uint64_t i) { return to + i / kWidth * kWidth * kGroupRows + i % kWidth; };
      if constexpr (kCounts) {
        unit = units[r];
        const float inverse = 1 / unit;
        for (int64_t i = 0; i < d; i += kLanes) {
          const Floats value = load(values + r * padded + i);
          const Floats integer = Arithmetic::write(value * inverse, place(i)), left = value - integer * unit;
          residuals += left * left;
          integers += integer;
        }
      } else {
        each(r, [&](uint64_t i, Floats value) {
          const Floats written = Arithmetic::write(value, place(i));
          squares += value * value;
          if constexpr (Arithmetic::kPacking > 1) residuals += (value - written) * (value - written);
        });
        norms[r] = sum_lanes(squares);
      }
      float norm = norms[r], residual = sum_lanes(residuals);
      const bool multiplied = d > 0 && norm <= kMaxLength * kMaxLength;
      if (!multiplied) {
        if (d > 0 && all_finite(code_of<C>(p, book, k, room), d)) {
          const float length = 0.98f * (norm < 0x1p120f ? __builtin_sqrtf(norm) : 0x1p60f);
          group->left_out_length = length < group->left_out_length ? length : group->left_out_length;
        }
        for (int64_t i = 0; i < p.d; i += kWidth) memset(to + i * kGroupRows, 0, sizeof(Floats));
        norm = residual = 0, integers = Floats{}, unit = 1;
      }
      group->unit[r] = unit;
      if constexpr (kCounts) group->start[r] = -Arithmetic::kOffset * int32_t(sum_lanes(integers));
      group->bias[r] = multiplied ? -norm / 2 : -__builtin_inff();
      norms[r] = norm, rests[r] = residual;
      longest = norm > longest ? norm : longest;
      left_out = residual > left_out ? residual : left_out;
      shortest = multiplied && norm < shortest ? norm : shortest;
    }
    group->bound = bound_of(p.d, longest, left_out);
    group->mixed = longest > (p.d > 1 ? 0x1p10f : 0x1p16f) * shortest && longest > 0x1p10f;
    for (int64_t r = 0; group->mixed && r < kGroupRows; ++r) group->own[r] = bound_of(p.d, norms[r], rests[r]);
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
