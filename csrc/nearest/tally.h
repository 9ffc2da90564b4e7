// Short vectors: their scores, counted as integers (counts.h).
//
// A group that may have the nearest code of a vector is scored again in float32, for that vector alone, with the codes
// side by side. This bound is so small that the codes it leaves are nearly always one. Open groups are always
// scored so.
#pragma once

#include "nearest/counts.h"
#include "nearest/match.h"

namespace vqfast::VQFAST_ISA {
namespace {
#if defined(VQFAST_INTEGERS)

// A chunk of groups, prepared before or now. Codes that are known to equal an earlier one are left out.
template <class C, int kChannels>
Chunk tallied_chunk(const NearestProblem& p, const Codebook& book, bool ready, Span groups, const Scratch& s) {
  const uint8_t* repeats = s.state->repeats;
  s.state->started = 0;
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
    prepare_tallies<C, kChannels>(p, book, groups, s.codes, exact, s.groups, s.code);
  }
  for (int64_t k = groups.begin * kGroupRows; repeats && k < min(groups.end * kGroupRows, p.k); ++k)
    if (repeats[k]) {
      const int64_t g = k / kGroupRows - groups.begin;
      leave_out<kChannels>(p.d, s.codes + g * tally, k % kGroupRows);
      exact[g * size + p.d * kLanes + k % kGroupRows] = -__builtin_inff();
    }
  return chunk;
}

// The units of a tile's columns in a chunk, and what their tallies stand for: score + error = value * count + error.
template <int kV>
struct Units {
  bool even;                            // whether all columns have one
  Floats of[kV], count[kV], error[kV];  // of each
};

// The highest tally of each group, high (count, kV registers of columns). starts: (count, kGroupRows) integers that sums
// begin with where units are even.
#if defined(__AVX512BF16__)
template <int kChannels, bool kEven, int kSteps, int kV>
[[gnu::noinline]] void tally(
    const float* group, const int32_t* starts, int64_t count, const float* columns, const Units<kV>& units,
    float* high) {
  using Counted = Count<kChannels>;
  constexpr int64_t kBegin = kGroupRows * Counted::kStarts;
  Floats column[kSteps][kV], inverse[kV];
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) {
    inverse[v] = 1 / units.of[v];
#pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step) column[step][v] = load(columns + (step * kV + v) * kLanes);
  }
  for (int64_t g = 0; g < count; ++g, group += kBegin + kGroupRows * kSteps, high += kV * kLanes) {
    Ints most[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) most[v] = Counted::kNone - Ints{};
#pragma GCC unroll 16
    for (int r = 0; r < kGroupRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        const Floats bias = group[r] - Floats{};  // x - 0 is x: no addition
        Ints sum;
        if constexpr (kChannels == 4)
          sum = (Ints)(bias * inverse[v] + (group[kGroupRows + r] - Floats{}));
        else
          sum = kEven ? starts[g * kGroupRows + r] - Ints{} : integers(bias * inverse[v]);
#pragma GCC unroll 4
        for (int step = 0; step < kSteps; ++step) {
          const float code = group[kBegin + step * kGroupRows + r];
          if constexpr (kChannels == 4)
            sum = (Ints)Int8Quads::add((Floats)sum, code, column[step][v]);
          else
            sum = add_pairs(sum, (Ints)column[step][v], (Ints)(code - Floats{}));
        }
        most[v] = max(most[v], sum);
      }
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) store(most[v], high + v * kLanes);
  }
}
#else
// There are no registers for all columns. With kSteps 0 any number of steps is given.
template <bool kEven, int kSteps, int kV>
[[gnu::noinline]] void tally(
    const float* group, const int32_t* starts, int64_t count, int64_t steps, const float* columns,
    const Units<kV>& units, float* high) {
  Floats inverse[kV];
  for (int v = 0; v < kV; ++v) inverse[v] = 1 / units.of[v];
  for (int64_t g = 0; g < count; ++g, group += kGroupRows * (1 + steps), high += kV * kLanes) {
    Sums<Int16Pairs, kGroupRows, kV> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kGroupRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v)
        sums.of[r][v] =
            (Floats)(kEven ? starts[g * kGroupRows + r] - Ints{} : integers((group[r] - Floats{}) * inverse[v]));
    if constexpr (kSteps == 0) sums.add(steps, group + kGroupRows, 1, kGroupRows, columns);
#pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step)
      sums.step(sums.of, group + (1 + step) * kGroupRows, 1, columns + step * kV * kLanes);
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      Ints most = (Ints)sums.of[0][v];
#pragma GCC unroll 16
      for (int r = 1; r < kGroupRows; ++r) most = max(most, (Ints)sums.of[r][v]);
      store(most, high + v * kLanes);
    }
  }
}
#endif

template <int kChannels, int kV>
struct Match<Tally<kChannels>, kV> {
  using Counted = Count<kChannels>;
  const NearestProblem& p;
  const Chunk& chunk;
  const Scratch& s;
  const int64_t n, steps = ceil_div(p.d, kChannels);
  const float *columns = s.columns + n * p.d;

  // Rounds the columns to their units in this chunk, as `words` (steps, kV registers).
  Units<kV> fit(float* words) const {
    const CodeGroup& head = *chunk.groups;
    const float most = head.unit[0] * Counted::least_ratio(p.d);
    Units<kV> units;
    Floats largest = most - Floats{}, smallest = Floats{} - __builtin_inff();
    for (int v = 0; v < kV; ++v) {
      const Floats low = load(s.low + n + v * kLanes), own = low == low ? load(s.unit + n + v * kLanes) : Floats{};
      units.of[v] = max(Counted::units_of(own, p.d), most - Floats{});
      largest = max(largest, units.of[v]), smallest = max(smallest, -units.of[v]);
    }
    const float one = max_lane(largest);
    units.even = kChannels == 2 && one <= -8 * max_lane(smallest);
    for (int v = 0; v < kV; ++v) {
      if (units.even) units.of[v] = one - Floats{};
      const Floats inverse = 1 / units.of[v];
      Floats squares = {};
      for (int64_t step = 0; step < steps; ++step)
        store(Counted::words([&](int64_t c) {
          const int64_t i = step * kChannels + c;
          if (i >= p.d) return Bits32{};
          const Floats value = load(columns + (i * kV + v) * kLanes);
          const Ints integer = integers(value * inverse);
          const Floats left = value - __builtin_convertvector(integer, Floats) * units.of[v];
          squares += left * left;
          return (Bits32)integer;
        }), words + (step * kV + v) * kLanes);
      const Floats residual = sqrt(squares) + Counted::kAdded * units.of[v];
      const Bound& of = head.bound;
      units.count[v] = units.of[v] * head.unit[0];
      units.error[v] = load(s.length + n + v * kLanes) * of.of_length + (residual * of.of_residual + of.own);
    }
    return units;
  }

  // Raises each column's low to the largest score - error of the codes. Leaves the highest tally of each group in `high`,
  // or a bound by the lengths of its codes, that of four groups in `fours`, and in `limits` a number that is less than
  // each tally which reaches the low.
  void raise(CodePrefetch& next) const {
    for (int64_t g = 0; g < chunk.count; ++g) next.advance();
    alignas(64) float words[kMaxTalliedChannels / kChannels * kV * kLanes];
    const Units<kV> units = fit(words);
    if (units.even && s.state->started != units.of[0][0]) {
      const Floats inverse = 1 / units.of[0];
      for (int64_t g = 0; g < chunk.count; ++g)
        store(integers(load(chunk.codes + g * tally_size(p.d)) * inverse), s.starts + g * kGroupRows);
      s.state->started = units.of[0][0];
    }
    count(words, units);
    Ints largest[kV];
    join(largest);
    for (int v = 0; v < kV; ++v) {
      float* to = s.low + n + v * kLanes;
      const Floats score = Counted::value(largest[v]) * units.count[v] - units.error[v];
      const Floats any = largest[v] != Counted::kNone ? score : Floats{} - __FLT_MAX__;
      const Floats low = max(any, load(to));
      const auto tally_of = [&](Floats score) { return (score - units.error[v]) / units.count[v]; };
      store(low, to);
      store(low == low ? Counted::below(tally_of(low)) : Ints{} + INT32_MAX, s.limits + v * kLanes);
      for (int64_t g = 0; chunk.groups->varied && g < chunk.count; ++g) {
        float* high = high_of(g, v);
        const Ints most = Counted::above(tally_of(reach(chunk.groups[g].unit[1], v))), counted = (Ints)load(high);
        store(chunk.groups[g].mixed ? most : most < counted ? most : counted, high);
      }
    }
    if (chunk.groups->varied) join(largest);
  }

  // A bound of the scores of codes that are no shorter than this: t <= |a| |b| - |b|^2 / 2, which falls as |b| grows past
  // |a|; infinity for shorter codes than |a|.
  Floats reach(float shortest, int v) const {
    const Floats length = load(s.length + n + v * kLanes) * 1.02f, none = {}, all = none + __builtin_inff();
    return length < shortest ? shortest * (length - shortest / 2) : all;
  }

  // Notes the groups that reach a column's low. Once many are noted, or after the last columns of this width, scores them
  // again, adds the codes whose exact score + error reaches the low to the candidates, and raises the low. Returns false
  // once repeats have become known that the chunk doesn't leave out: it is better matched again without them.
  bool collect(const Codebook& book, bool last) const {
    // Which groups reach a low can't be foretold: no branch depends on one of them.
    int64_t count = s.state->noted;
    for (int v = 0; v < kV; ++v) {
      const Ints limit = (Ints)load(s.limits + v * kLanes);
      uint32_t some[kMaxTallied / 4];  // fours with a group that a column wants
      int64_t num_some = 0;
      for (int64_t four = 0; four * 4 < chunk.count; ++four) {
        some[num_some] = uint32_t(four);
        num_some += lanes_above((Ints)load(s.fours + (four * kV + v) * kLanes), limit) != 0;
      }
      for (int64_t i = 0; i < num_some; ++i)
#pragma GCC unroll 4
        for (int64_t g = some[i] * 4; g < some[i] * 4 + 4; ++g) {
          const uint32_t lanes = lanes_above((Ints)load(high_of(g, v)), limit);
          const int64_t first = (n + v * kLanes) * kNoted + g;
          store(lane_numbers(lanes) * int32_t(kNoted) + int32_t(first), s.noted + count);
          count += __builtin_popcount(lanes);
        }
    }
    const bool many = count >= kManyNoted || last;
    for (int64_t begin = 0; many && begin < count; begin += kBatch) score(book, {begin, min(begin + kBatch, count)});
    s.state->noted = many ? 0 : count;
    return s.state->repeats == chunk.repeats;
  }

 private:
  float* high_of(int64_t g, int v) const { return s.high + (g * kV + v) * kLanes; }

  void count(const float* words, const Units<kV>& units) const {
#if defined(__AVX512BF16__)
    const auto call = [&](auto f) { f(chunk.codes, s.starts, chunk.count, words, units, s.high); };
    if constexpr (kChannels == 4)
      steps == 2 ? call(tally<4, false, 2, kV>)
                 : steps == 3 ? call(tally<4, false, 3, kV>) : call(tally<4, false, 4, kV>);
    else if (units.even)
      steps == 1 ? call(tally<2, true, 1, kV>) : call(tally<2, true, 2, kV>);
    else
      steps == 1 ? call(tally<2, false, 1, kV>) : call(tally<2, false, 2, kV>);
#else
    const auto call = [&](auto f) { f(chunk.codes, s.starts, chunk.count, steps, words, units, s.high); };
    if (!units.even) return call(tally<false, 0, kV>);
    if constexpr (kV == kTileRegisters) {  // the last columns take any function
      if (steps == 1) return call(tally<true, 1, kV>);
      if (steps == 2) return call(tally<true, 2, kV>);
      if (steps == 3) return call(tally<true, 3, kV>);
      if (steps == 4) return call(tally<true, 4, kV>);
    }
    call(tally<true, 0, kV>);
#endif
  }

  // Fills `fours`, with the last one whole, and `largest` of all (kV registers).
  void join(Ints* largest) const {
    for (int v = 0; v < kV; ++v) {
      largest[v] = Counted::kNone - Ints{};
      for (int64_t g = chunk.count; g % 4; ++g) store(largest[v], high_of(g, v));
      for (int64_t g = 0; g < chunk.count; g += 4) {
        const auto high = [&](int64_t g) { return (Ints)load(high_of(g, v)); };
        const Ints most = max(max(high(g), high(g + 1)), max(high(g + 2), high(g + 3)));
        store(most, s.fours + (g / 4 * kV + v) * kLanes);
        largest[v] = max(largest[v], most);
      }
    }
  }

  // Whether two codes, in the type of the vectors, are equal bit by bit.
  bool repeated(const Codebook& book, int64_t code, int64_t other) const {
    const bool wide = p.precision == Precision::f64;
    return wide ? same_code<double>(p, book, code, other) : same_code<float>(p, book, code, other);
  }
  static constexpr int64_t kBatch = 64;

  // Scores groups of codes in float32, each for one noted column, unless its vector is lost by now.
  void score(const Codebook& book, Span noted) const {
    alignas(64) float scores[kBatch * kLanes], highest[kBatch], errors[kBatch];
    uint32_t columns[kBatch], groups[kBatch];
    int64_t count = 0;
    for (int64_t i = noted.begin; i < noted.end; ++i) {
      const uint32_t column = s.noted[i] / kNoted;
      columns[count] = column, groups[count] = s.noted[i] % kNoted;
      count += s.low[column] == s.low[column];
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t in_tile = columns[i] % kTileColumns;
      const float* codes = chunk.exact + groups[i] * exact_size(p.d);
      const float* x = s.columns + (columns[i] - in_tile) * p.d + in_tile;
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
      float& low = s.low[columns[i]];
      const Bound& of = chunk.groups[groups[i]].own[0];
      errors[i] = s.length[columns[i]] * of.of_length + of.own;
      low = highest[i] - errors[i] > low ? highest[i] - errors[i] : low;
    }
    int64_t left[kBatch], num_left = 0;
    for (int64_t i = 0; i < count; ++i) {
      left[num_left] = i;
      num_left += highest[i] + errors[i] >= s.low[columns[i]];
    }
    for (int64_t l = 0; l < num_left; ++l) {
      const int64_t i = left[l], at = columns[i], first = (chunk.first + groups[i]) * kGroupRows;
      const Floats high = load(scores + i * kLanes) + errors[i];
      for (uint32_t found = lanes_at_least(high, s.low[at] - Floats{}); found; found &= found - 1) {
        const int r = __builtin_ctz(found);
        const Vector& vector = *s.list[at];
        // Equal codes have one score: only such are read to be compared.
        const auto near = [&](float high) { return __builtin_fabsf(high - scores[i * kLanes + r]) <= 4 * errors[i]; };
        const Candidate* last = vector.candidates + vector.count - 1;
        if (vector.count > 0 && near(last->high) && repeated(book, first + r, last->code)) {
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
