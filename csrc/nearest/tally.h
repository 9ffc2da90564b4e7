// Short vectors: scores that are counted as integers.
//
// A few products don't pay for anything beside them. So one unit serves all codes of a chunk, and a score stays an
// integer until the largest of a group is known. A sum begins as the float32 number
//   2^23 + 2^22 + (-|b~|^2 / 2 of the code) / (unit of the vector * unit of the chunk),
// whose last bit counts 1: integers that are added to its bits are added to the number, and such numbers are compared
// as they are. A score takes one multiplication, D / 4 products of int8 and one comparison.
//
// It stays in [2^23, 2^24), and above 2^23, the number of a code that is left out, as a vector's unit is at least
// `least_ratio` of the chunk's, no less than D / 448: D (127^2 * 224 / D + 2 * 127 * 128) < 2^22 for D <= 16. A vector
// whose own unit is smaller is rounded again for the chunk. Where a sum begins it is rounded by 1/2, and by 3 u of up to
// 2^22 through the inverses of the units: 1.25 units in all. The longest |b~| of a chunk counts as 126 units at least,
// and 0.011 units are added to |a~ - a^|, whose product with it covers that.
//
// A group that may have the nearest code of a vector is scored again in float32, for that vector alone, with the codes
// side by side. This bound is so small that the codes it leaves are nearly always one. Groups with a code much longer
// than most, which would make the chunk's unit large, are always scored so: they are open.
#pragma once

#include "nearest/match.h"

namespace vqfast::VQFAST_ISA {
namespace {
#if defined(__AVX512BF16__)

constexpr float kWhole = 0x1.8p23f, kLeftOut = 0x1p23f;
constexpr float least_ratio(int64_t d) { return d > 8 ? 0x1p-4f : d > 4 ? 0x1p-5f : 0x1p-6f; }
constexpr float kLeast = 0x1p-30f;  // components count as so large at least, lest a unit be 0

// Takes row `row` out of a group's tallies.
void leave_out(int64_t d, float* tallies, int64_t row) {
  const int64_t steps = ceil_div(d, 4);
  tallies[row] = 0, tallies[kTileRows + row] = kLeftOut;
  memset(tallies + 2 * kTileRows + row * steps, 0, size_t(steps) * sizeof(float));
}

// Writes the groups of a chunk. tallies of a group: what sums begin with, times the vector's unit; what is added to
// that, and the words, (kTileRows), (kTileRows) and (kTileRows, ceil(D / 4)). exact: (D, kLanes) numbers of the codes,
// then their -|b~|^2 / 2. heads: of each group `mixed` if it is open, and the bound `own[0]` of its exact scores; of
// the first one `bound`, `unit[0]` and `open`, for all tallies.
template <class C>
void prepare_tallies(
    const NearestProblem& p, const Codebook& book, Span groups, float* tallies, float* exact, CodeGroup* heads,
    void* room) {
  const C* pivot = static_cast<const C*>(book.pivot);
  const int64_t steps = ceil_div(p.d, 4), count = count_of(groups);
  const auto code_at = [&](int64_t k) { return code_of<C>(p, book, k, room); };
  const auto each = [&](auto f) {
    for (int64_t g = 0; g < count; ++g)
      for (int64_t r = 0; r < kTileRows; ++r) f(g, r, (groups.begin + g) * kTileRows + r);
  };
  float components[kMaxTallied], longest[kMaxTallied], sorted[kMaxTallied];  // of each group
  float all_longest = 0, left_out = 0, largest = kLeast;                     // of all that aren't open
  memset(exact, 0, size_t(count * exact_size(p.d)) * sizeof(float));
  for (int64_t g = 0; g < count; ++g) {
    heads[g].left_out_length = __builtin_inff(), components[g] = kLeast, longest[g] = 0;
    store(Floats{} - __builtin_inff(), exact + g * exact_size(p.d) + p.d * kLanes);
  }
  each([&](int64_t g, int64_t r, int64_t k) {
    if (k >= p.k) return;
    const C* code = code_at(k);
    const Floats value = centred(code, pivot, C(book.scale), p.d);
    const float norm = sum_lanes(value * value), size = max_lane(max(value, -value));
    if (!(norm <= kMaxLength * kMaxLength)) {
      float& shortest = heads[g].left_out_length;
      const float length = 0.98f * (norm < 0x1p120f ? __builtin_sqrtf(norm) : 0x1p60f);
      if (all_finite(code, p.d) && length < shortest) shortest = length;
      return;
    }
    float* to = exact + g * exact_size(p.d) + r;
    for (int64_t i = 0; i < p.d; ++i) to[i * kLanes] = value[i];
    to[p.d * kLanes] = -norm / 2;
    components[g] = size > components[g] ? size : components[g];
    longest[g] = norm > longest[g] ? norm : longest[g];
  });
  for (int64_t g = 0; g < count; ++g) {
    int64_t at = g;
    for (; at > 0 && sorted[at - 1] > components[g]; --at) sorted[at] = sorted[at - 1];
    sorted[at] = components[g];
  }
  const float limit = 8 * sorted[count / 2];
  heads->open = 0;
  for (int64_t g = 0; g < count; ++g) {
    heads[g].mixed = components[g] > limit;
    heads->open += heads[g].mixed;
    heads[g].own[0] = bound_of(p.d, longest[g], 0);
    if (heads[g].mixed) continue;
    largest = components[g] > largest ? components[g] : largest;
    all_longest = longest[g] > all_longest ? longest[g] : all_longest;
  }
  const float unit = unit_of(largest), inverse = 1 / unit;
  each([&](int64_t g, int64_t r, int64_t k) {
    float *own = tallies + g * tally_size(p.d), *bias = exact + g * exact_size(p.d) + p.d * kLanes + r;
    if (heads[g].mixed || *bias == -__builtin_inff()) return leave_out(p.d, own, r);
    const Floats value = centred(code_at(k), pivot, C(book.scale), p.d);
    float words[kLanes / 4];
    const Floats integer = Int8Quads::write(value * inverse, reinterpret_cast<int8_t*>(words));
    const Floats left = value - integer * unit;
    const float rest = sum_lanes(left * left);
    left_out = rest > left_out ? rest : left_out;
    own[r] = *bias * inverse;
    own[kTileRows + r] = kWhole - 128 * sum_lanes(integer);
    memcpy(own + 2 * kTileRows + r * steps, words, size_t(steps) * sizeof(float));
  });
  const float least = 126 * unit;
  heads->bound = bound_of(p.d, all_longest > least * least ? all_longest : least * least, left_out);
  heads->unit[0] = unit;
}

// A chunk of groups, prepared before or now. Codes that are known to equal an earlier one are left out.
template <class C>
Chunk tallied_chunk(const NearestProblem& p, const Codebook& book, bool ready, Span groups, const Scratch& s) {
  const uint8_t* repeats = s.state->repeats;
  const int64_t count = count_of(groups), tally = tally_size(p.d), size = exact_size(p.d);
  float* exact = s.codes + ceil_div(count * tally, kLanes) * kLanes;
  Chunk chunk{groups.begin, count, s.groups, s.codes, repeats, exact};
  if (ready) {
    const float* numbers = numbers_of(p, book);
    chunk.groups = groups_of(book) + groups.begin;
    chunk.codes = numbers + groups.begin * tally;
    chunk.exact = numbers + ceil_div(p.groups * tally, kLanes) * kLanes + groups.begin * size;
    if (!repeats) return chunk;
    memcpy(s.codes, chunk.codes, size_t(count * tally) * sizeof(float));
    memcpy(exact, chunk.exact, size_t(count * size) * sizeof(float));
    chunk.codes = s.codes, chunk.exact = exact;
  } else {
    prepare_tallies<C>(p, book, groups, s.codes, exact, s.groups, s.code);
  }
  for (int64_t k = groups.begin * kTileRows; repeats && k < min(groups.end * kTileRows, p.k); ++k)
    if (repeats[k]) {
      const int64_t g = k / kTileRows - groups.begin;
      leave_out(p.d, s.codes + g * tally, k % kTileRows);
      exact[g * size + p.d * kLanes + k % kTileRows] = -__builtin_inff();
    }
  return chunk;
}

// The highest tally of each group, high (count, kV registers of columns), and of all, largest (kV registers).
template <int kSteps, int kV>
[[gnu::noinline]] void tally(
    const float* group, int64_t count, const float* columns, const float* unit, float* high, Floats* largest) {
  Floats column[kSteps][kV], inverse[kV], all[kV];
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) {
    inverse[v] = 1 / load(unit + v * kLanes), all[v] = Floats{};
#pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step) column[step][v] = load(columns + (step * kV + v) * kLanes);
  }
  for (int64_t g = 0; g < count; ++g, group += kTileRows * (2 + kSteps), high += kV * kLanes) {
    Floats most[kV] = {};
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        Floats sum = (group[r] - Floats{}) * inverse[v] + (group[kTileRows + r] - Floats{});  // x - 0 is x: no addition
#pragma GCC unroll 4
        for (int step = 0; step < kSteps; ++step)
          sum = Int8Quads::add(sum, group[2 * kTileRows + r * kSteps + step], column[step][v]);
        most[v] = max(most[v], sum);
      }
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      store(most[v], high + v * kLanes);
      all[v] = max(all[v], most[v]);
    }
  }
  for (int v = 0; v < kV; ++v) largest[v] = all[v];
}

template <int kV>
struct Match<Tally, kV> {
  const NearestProblem& p;
  const Chunk& chunk;
  const Scratch& s;
  const int64_t n, steps = ceil_div(p.d, 4);
  const float *columns = s.columns + n * (steps + p.d), *exact = columns + steps * kV * kLanes;

  // Of register v in this chunk, once `fit` was called.
  Floats unit(int v) const { return load(s.fitted + v * kLanes); }
  Floats error(int v) const {
    const Bound& of = chunk.groups->bound;
    const Floats residual = load(s.fitted + (kV + v) * kLanes);
    return load(s.length + n + v * kLanes) * of.of_length + (residual * of.of_residual + of.own);
  }

  // Sets the columns' units and residuals in this chunk. Returns the columns, rounded so.
  const float* fit() const {
    const float least = chunk.groups->unit[0] * least_ratio(p.d);
    uint32_t raised = 0;
    for (int v = 0; v < kV; ++v) {
      const Floats own = load(s.unit + n + v * kLanes), unit = max(own, least - Floats{});
      raised |= ~lanes_at_least(own, unit) & ((1u << kLanes) - 1);
      store(unit, s.fitted + v * kLanes);
      store(load(s.residual + n + v * kLanes), s.fitted + (kV + v) * kLanes);
    }
    if (!raised) return columns;
    float *residual = s.fitted + kV * kLanes, *words = residual + kV * kLanes;
    for (int v = 0; v < kV; ++v) store(Floats{}, residual + v * kLanes);
    quantize(exact, kV * kLanes, p.d, s.fitted, words, residual);
    for (int r = 0; r < kV * kLanes; ++r) residual[r] = __builtin_sqrtf(residual[r]) + 0.011f * s.fitted[r];
    return words;
  }

  // Raises each column's low to the largest score - error of the codes, and leaves each group's highest tally in
  // `high`, infinity for open groups.
  void raise(CodePrefetch& next) const {
    for (int64_t g = 0; g < chunk.count; ++g) next.advance();
    Floats largest[kV];
    const float* rounded = fit();
    const auto call = [&](auto f) { f(chunk.codes, chunk.count, rounded, s.fitted, s.high, largest); };
    steps < 3 ? steps == 1 ? call(tally<1, kV>) : call(tally<2, kV>)
              : steps == 3 ? call(tally<3, kV>) : call(tally<4, kV>);
    const CodeGroup& head = *chunk.groups;
    for (int64_t g = 0; head.open && g < chunk.count; ++g)
      for (int v = 0; v < kV && chunk.groups[g].mixed; ++v)
        store(Floats{} + __builtin_inff(), s.high + (g * kV + v) * kLanes);
    for (int v = 0; v < kV; ++v) {
      float* to = s.low + n + v * kLanes;
      const Floats score = (largest[v] - kWhole) * (unit(v) * head.unit[0]) - error(v);
      store(max(largest[v] > kLeftOut ? score : Floats{} - __FLT_MAX__, load(to)), to);
    }
  }

  // Adds the codes whose exact score + error reaches a column's low to its candidates, and raises its low. Returns
  // false once repeats have become known that the chunk doesn't leave out: it is better matched again without them.
  bool collect(const Codebook& book) const {
    for (int v = 0; v < kV; ++v) {
      // 2 less cover what rounding does here; NaN stays
      const Floats low = load(s.low + n + v * kLanes), counts = unit(v) * chunk.groups->unit[0];
      const Floats least = max(Floats{} + (kLeftOut + 1), (low - error(v)) / counts + (kWhole - 2));
      // Which groups reach it can't be foretold: no branch depends on one of them.
      const __m512i step = _mm512_set1_epi32(kLanes);
      __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      uint32_t reached[(kMaxTallied + 1) * kLanes];  // group * kLanes + lane
      int64_t count = 0;
      for (int64_t g = 0; g < chunk.count; ++g, number = _mm512_add_epi32(number, step)) {
        const uint32_t lanes = lanes_at_least(load(s.high + (g * kV + v) * kLanes), least);
        _mm512_storeu_si512(reached + count, _mm512_maskz_compress_epi32(__mmask16(lanes), number));
        count += __builtin_popcount(lanes);
      }
      for (int64_t begin = 0; begin < count; begin += kBatch)
        score(book, v, {reached + begin, reached + min(begin + kBatch, count)});
      if (s.state->repeats != chunk.repeats) return false;
    }
    return true;
  }

 private:
  // Whether two codes, in the type of the vectors, are equal bit by bit.
  bool repeated(const Codebook& book, int64_t code, int64_t other) const {
    const bool wide = p.precision == Precision::f64;
    return wide ? same_code<double>(p, book, code, other) : same_code<float>(p, book, code, other);
  }
  static constexpr int64_t kBatch = 64;
  struct Reached {
    const uint32_t *begin, *end;
  };

  // Scores groups of codes in float32, each for one lane of register v.
  void score(const Codebook& book, int v, Reached reached) const {
    alignas(64) float scores[kBatch * kLanes], highest[kBatch], errors[kBatch];
    const int64_t count = reached.end - reached.begin;
    const auto column = [&](int64_t i) { return v * kLanes + reached.begin[i] % kLanes; };
    for (int64_t i = 0; i < count; ++i) {
      const float *codes = chunk.exact + reached.begin[i] / kLanes * exact_size(p.d), *x = exact + column(i);
      Floats score = load(codes + p.d * kLanes), odd = {};
      int64_t c = 0;
      for (; c + 2 <= p.d; c += 2) {
        score += load(codes + c * kLanes) * x[c * kV * kLanes];
        odd += load(codes + (c + 1) * kLanes) * x[(c + 1) * kV * kLanes];
      }
      if (c < p.d) odd += load(codes + c * kLanes) * x[c * kV * kLanes];
      score += odd;
      store(score, scores + i * kLanes);
      highest[i] = max_lane(score);
    }
    for (int64_t i = 0; i < count; ++i) {
      float& low = s.low[n + column(i)];
      const Bound& of = chunk.groups[reached.begin[i] / kLanes].own[0];
      errors[i] = s.length[n + column(i)] * of.of_length + of.own;
      low = highest[i] - errors[i] > low ? highest[i] - errors[i] : low;
    }
    int64_t left[kBatch], num_left = 0;
    for (int64_t i = 0; i < count; ++i) {
      left[num_left] = i;
      num_left += highest[i] + errors[i] >= s.low[n + column(i)];
    }
    for (int64_t l = 0; l < num_left; ++l) {
      const int64_t i = left[l], at = n + column(i), first = (chunk.first + reached.begin[i] / kLanes) * kTileRows;
      const Floats high = load(scores + i * kLanes) + errors[i];
      for (uint32_t found = lanes_at_least(high, s.low[at] - Floats{}); found; found &= found - 1) {
        const int r = __builtin_ctz(found);
        const Vector& vector = *s.list[at];
        if (vector.count > 0 && repeated(book, first + r, vector.candidates[vector.count - 1].code)) {
          if (!s.state->repeats && --s.state->spare < 0) s.state->repeats = book.find_repeats(book);
          continue;  // of equal codes the first is enough
        }
        add(p, book, s, at, {scores[i * kLanes + r] + errors[i], int32_t(first + r)}, s.low[at]);
      }
    }
  }
};

#endif
}  // namespace
}  // namespace vqfast::VQFAST_ISA
