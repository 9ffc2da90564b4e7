// Short codes: scores that are counted as integers of 32 bits.
//
// A few products don't pay for anything beside them. So one unit serves all codes of a chunk, another serves a vector,
// and a score counts in the product of both, until the largest of a group is known.
//
// Four channels a word: the CPU multiplies int8. A sum begins as the float32 number
//   2^23 + 2^22 + (-|b~|^2 / 2 of the code) / (unit of the vector * unit of the chunk),
// whose last bit counts 1: integers that are added to its bits are added to the number. It stays in [2^23, 2^24), where
// such numbers compare as their bits do, and above 2^23, the number of a code that is left out, as a vector's unit is
// at least `least_ratio` of the chunk's, no less than D / 448: D (127^2 * 224 / D + 2 * 127 * 128) < 2^22 for D <= 16.
// Where a sum begins it is rounded by 1/2, and by 3 u of up to 2^22 through the inverses of the units: 1.25 units in
// all. The longest |b~| of a chunk counts as 126 units at least, and 0.011 units are added to |a~ - a^|, whose product
// with it covers that.
//
// Two channels a word, for vectors of which int8 would tell too few codes apart, and where the CPU doesn't multiply
// int8: it multiplies int16. Units are powers of two, a component counts 2^14 of them at most, or 2^13 for D > 4, and
// the largest more than half of that. A sum begins as an integer, rounded by 1/2, which 0.0002 units added to
// |a~ - a^| cover. With a vector's unit at least the chunk's the size of a sum is at most D (2^28 + 2^27) for D <= 4,
// D (2^26 + 2^25) for D <= 16, both less than 2^31; a code that is left out has -2^31. Where the vectors of a tile are
// about as long, as is usual, they have one unit, and what their sums begin with is computed once for the tile.
//
// Groups with a code much longer than most, which would make the chunk's unit large, are open: they aren't counted.
#pragma once

#include "nearest/codes.h"

namespace vqfast::VQFAST_ISA {
namespace {
#if defined(VQFAST_INTEGERS)

constexpr float kWhole = 0x1.8p23f, kLeftOut = 0x1p23f;
constexpr float kLeast = 0x1p-30f;  // components count as so large at least, lest a unit be 0

// How codes and vectors count, with kChannels a word.
template <int kChannels>
struct Count;
#if defined(__AVX512BF16__)
template <>
struct Count<4> {
  // The least unit of a vector as a part of the chunk's, the least |b~| of a chunk's longest code in the chunk's units,
  // and the units that are added to |a~ - a^|.
  static constexpr float least_ratio(int64_t d) { return d > 8 ? 0x1p-4f : 0x1p-5f; }
  static constexpr float kAdded = 0.011f;
  static float longest(int64_t) { return 126; }
  static constexpr float kOpen = 8;  // the components of an open group, as a multiple of the median group's
  static constexpr int64_t kStarts = 2;  // numbers a sum begins with
  static constexpr int32_t kNone = __builtin_bit_cast(int32_t, kLeftOut);  // the tally of a code that is left out
  // Units of vectors of D channels, or codes, with these largest components.
  static Floats units_of(Floats largest, int64_t) { return (Floats)(((Bits32)(largest / 127) + 0xffff) & 0xffff0000); }
  static Floats value(Ints tally) { return (Floats)tally - kWhole; }
  // An integer that is less, or more, than every tally with a value of at least, or at most, this; see Count<2>.
  static Ints below(Floats value) {
    const Ints tally = bits_of(value) - 2;
    return tally > kNone ? tally : kNone - Ints{};
  }
  static Ints above(Floats value) { return bits_of(value) + 2; }
  // Writes what a sum begins with, given -|b~|^2 / 2 in the chunk's units, and the sum of the code's integers.
  static void start(float bias, float integers, float* at) {
    const bool left_out = bias == -__builtin_inff();
    at[0] = left_out ? 0 : bias;
    at[kGroupRows] = left_out ? kLeftOut : kWhole - 128 * integers;
  }
  static Ints bits_of(Floats value) {
    const Floats least = Floats{} + kLeftOut, most = Floats{} + 0x1.fffffep23f, tally = max(value + kWhole, least);
    return (Ints)(tally < most ? tally : most);
  }
  static void write(Ints integers, float* words) {
    _mm_storeu_si128((__m128i*)words, _mm512_cvtsepi32_epi8((__m512i)integers));
  }
  // Those of vectors, int32 channel by channel, as a register of words.
  template <class Integer>
  static Bits32 words(Integer of) {
    return ((of(0) & 0xff) | (of(1) & 0xff) << 8 | (of(2) & 0xff) << 16 | of(3) << 24) ^ 0x80808080;
  }
};
#endif
template <>
struct Count<2> {
  static constexpr float least_ratio(int64_t) { return 1; }
  static constexpr float kAdded = 0.0002f;
  static float longest(int64_t d) { return d > 4 ? 0x1p12f : 0x1p13f; }
  static constexpr float kOpen = 24;
  static constexpr int64_t kStarts = 1;
  static constexpr int32_t kNone = INT32_MIN;
  static Floats units_of(Floats largest, int64_t d) {
    return (Floats)(((Bits32)largest + 0x7fffff) & 0x7f800000) * (0.5f / longest(d));
  }
  static Floats value(Ints tally) { return __builtin_convertvector(tally, Floats); }
  // An integer that is less, or more, than every tally with a value of at least, or at most, this. The value is a
  // quotient of a difference, rounded by 3 u of it at most: far less than 2^-20. Past what an int32 holds the integer
  // that is more is the larger one.
  static Ints below(Floats value) { return nearest_to(value - margin_of(value), 0x1.fffffcp30f); }
  static Ints above(Floats value) { return nearest_to(value + margin_of(value), 0x1.fffffep30f); }
  static void start(float bias, float, float* at) { at[0] = bias; }  // -inf becomes kNone
  static void write(Ints integers, float* words) { store(__builtin_convertvector(integers, Bits16), words); }
  static Floats margin_of(Floats value) { return (value < 0 ? -value : value) * 0x1p-20f + 2; }
  static Ints nearest_to(Floats value, float limit) {
    const Floats most = Floats{} + limit, clamped = max(value, -most);
    return integers(clamped < most ? clamped : most);
  }
  template <class Integer>
  static Bits32 words(Integer of) {
    return (of(0) & 0xffff) | of(1) << 16;
  }
};

// Takes row `row` out of a group's tallies.
template <int kChannels>
void leave_out(int64_t d, float* tallies, int64_t row) {
  Count<kChannels>::start(-__builtin_inff(), 0, tallies + row);
  float* words = tallies + kGroupRows * Count<kChannels>::kStarts + row;
  for (int64_t step = 0; step < ceil_div(d, kChannels); ++step) words[step * kGroupRows] = 0;
}

// Writes the groups of a chunk. tallies of a group: what sums begin with, (kStarts, kGroupRows), and the words,
// (ceil(D / kChannels), kGroupRows). exact: (D, kLanes) numbers of the codes, then their -|b~|^2 / 2. heads: of each
// group `mixed` if it is open, the bound `own[0]` of its exact scores, and in `unit[1]` no more than |b| of any of its
// codes; of the first one `bound`, `unit[0]` and `varied`, for all tallies.
template <class C, int kChannels>
void prepare_tallies(
    const NearestProblem& p, const Codebook& book, Span groups, float* tallies, float* exact, CodeGroup* heads,
    void* room) {
  using Counted = Count<kChannels>;
  const C* pivot = static_cast<const C*>(book.pivot);
  const int64_t count = count_of(groups);
  // f(i, channels i to i + kLanes) of code k
  const auto registers_of = [&](int64_t k, auto f) {
    const C* code = code_of<C>(p, book, k, room);
    for (int64_t i = 0; i < p.d; i += kLanes) f(i, centred(code + i, pivot + i, C(book.scale), p.d - i));
  };
  const auto each = [&](auto f) {
    for (int64_t g = 0; g < count; ++g)
      for (int64_t r = 0; r < kGroupRows; ++r) f(g, r, (groups.begin + g) * kGroupRows + r);
  };
  float components[kMaxTallied], longest[kMaxTallied], shortest[kMaxTallied], sorted[kMaxTallied];  // of each group
  float all_longest = 0, left_out = 0, largest = kLeast;  // of all that aren't open
  memset(exact, 0, size_t(count * exact_size(p.d)) * sizeof(float));
  for (int64_t g = 0; g < count; ++g) {
    heads[g].left_out_length = __builtin_inff(), components[g] = kLeast, longest[g] = 0;
    shortest[g] = __builtin_inff();
    store(Floats{} - __builtin_inff(), exact + g * exact_size(p.d) + p.d * kLanes);
  }
  each([&](int64_t g, int64_t r, int64_t k) {
    if (k >= p.k) return;
    float numbers[kMaxTalliedChannels];
    Floats squares = {}, sizes = {};
    registers_of(k, [&](int64_t i, Floats value) {
      store(value, numbers + i);
      squares += value * value;
      sizes = max(sizes, max(value, -value));
    });
    const float norm = sum_lanes(squares), size = max_lane(sizes);
    if (!(norm <= kMaxLength * kMaxLength)) {
      float& shortest = heads[g].left_out_length;
      const float length = 0.98f * (norm < 0x1p120f ? __builtin_sqrtf(norm) : 0x1p60f);
      if (all_finite(code_of<C>(p, book, k, room), p.d) && length < shortest) shortest = length;
      return;
    }
    float* to = exact + g * exact_size(p.d) + r;
    for (int64_t i = 0; i < p.d; ++i) to[i * kLanes] = numbers[i];
    to[p.d * kLanes] = -norm / 2;
    components[g] = size > components[g] ? size : components[g];
    longest[g] = norm > longest[g] ? norm : longest[g];
    shortest[g] = norm < shortest[g] ? norm : shortest[g];
  });
  for (int64_t g = 0; g < count; ++g) {
    int64_t at = g;
    for (; at > 0 && sorted[at - 1] > components[g]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = components[g];
  }
  const float limit = Counted::kOpen * sorted[count / 2];
  heads->varied = sorted[count - 1] > 8 * sorted[0];
  for (int64_t g = 0; g < count; ++g) {
    heads[g].mixed = components[g] > limit;
    heads[g].own[0] = bound_of(p.d, longest[g], 0);
    heads[g].unit[1] = 0.98f * __builtin_sqrtf(shortest[g]);
    if (heads[g].mixed) continue;
    largest = components[g] > largest ? components[g] : largest;
    all_longest = longest[g] > all_longest ? longest[g] : all_longest;
  }
  const float unit = Counted::units_of(largest - Floats{}, p.d)[0], inverse = 1 / unit;
  each([&](int64_t g, int64_t r, int64_t k) {
    float *own = tallies + g * tally_size(p.d), *bias = exact + g * exact_size(p.d) + p.d * kLanes + r;
    if (heads[g].mixed || *bias == -__builtin_inff()) return leave_out<kChannels>(p.d, own, r);
    float words[kMaxTalliedChannels / 2];
    Floats squares = {}, sums = {};
    registers_of(k, [&](int64_t i, Floats value) {
      const Ints rounded = integers(value * inverse);
      const Floats integer = __builtin_convertvector(rounded, Floats), left = value - integer * unit;
      squares += left * left, sums += integer;
      Counted::write(rounded, words + i / kChannels);
    });
    const float rest = sum_lanes(squares);
    left_out = rest > left_out ? rest : left_out;
    Counted::start(*bias * inverse, sum_lanes(sums), own + r);
    for (int64_t step = 0; step * kChannels < p.d; ++step)
      own[(Counted::kStarts + step) * kGroupRows + r] = words[step];
  });
  const float least = Counted::longest(p.d) * unit;
  heads->bound = bound_of(p.d, all_longest > least * least ? all_longest : least * least, left_out);
  heads->unit[0] = unit;
}

#endif
}  // namespace
}  // namespace vqfast::VQFAST_ISA
