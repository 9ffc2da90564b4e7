// The candidates of a block of vectors among a chunk of codes; nearest.cpp proves the bounds.
#pragma once

#include "nearest/scratch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Adds a candidate to listed vector n, whose low is `low`. Where there is no room, candidates below that are dropped,
// then codes that equal an earlier one; if that isn't enough, the vector is lost to this pass.
void add(const NearestProblem& p, const Codebook& book, const Scratch& s, int64_t n, Candidate candidate, float low) {
  Vector& vector = *s.list[n];
  State& state = *s.state;
  const auto repeats = [&](const Candidate& c) { return state.repeats && state.repeats[c.code]; };
  const auto keep_if = [&](auto f) {
    vector.count = 0;
    for (int64_t c = 0; c < p.max_candidates; ++c)
      if (f(vector.candidates[c])) vector.candidates[vector.count++] = vector.candidates[c];
  };
  ++state.counts.candidates;
  if (vector.count == kAll) return;
  if (vector.count == p.max_candidates) keep_if([&](const Candidate& c) { return c.high >= low; });
  if (vector.count == p.max_candidates) {
    if (!state.repeats && --state.spare < 0) state.repeats = book.find_repeats(book);
    keep_if([&](const Candidate& c) { return !repeats(c); });
  }
  if (repeats(candidate)) return;
  if (vector.count < p.max_candidates) {
    vector.candidates[vector.count++] = candidate;
  } else {
    vector.count = kAll, s.low[n] = __builtin_nanf("");
    ++state.lost;
  }
}

// The scores of a group of codes, (kGroupRows, kV registers of columns), where there is room for them, and the highest
// of each column, (kV registers). steps: words of a code.
template <class Arithmetic, int kV>
[[gnu::noinline]] void score(
    int64_t steps, const float* codes, const CodeGroup& group, const float* columns, const float* unit, float* scores,
    float* high) {
  constexpr int kRows = kGroupRows > kTileRows ? kGroupRows / 2 : kGroupRows;  // as registers take
  Floats largest[kV];
  for (int first = 0; first < kGroupRows; first += kRows) {
    Sums<Arithmetic, kRows, kV> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v)
        if constexpr (kIntegers<Arithmetic>)
          sums.of[r][v] = Arithmetic::begin(group.start[first + r]);
        else
          sums.of[r][v] = group.bias[first + r] - Floats{};
    const float* rows = codes + first * kLanes;
    for (int64_t step = 0; step < steps; step += kLanes)
      sums.add(min(kLanes, steps - step), rows + step * kGroupRows, kLanes, 1, columns + step * kV * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        Floats& score = sums.of[r][v];
        const int row = first + r;
        if constexpr (kIntegers<Arithmetic>)
          score = Arithmetic::value(score) * load(unit + v * kLanes) * group.unit[row] + group.bias[row];
        if (scores) store(score, scores + (row * kV + v) * kLanes);
        largest[v] = row ? max(largest[v], score) : score;
      }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) store(largest[v], high + v * kLanes);
}

#if defined(__AMX_TILE__)
// The highest score of each column, (kV registers), whose products (kV, kGroupRows registers) are there.
template <int kV>
[[gnu::always_inline]] inline void find_high(const float* products, const CodeGroup& group, float* high) {
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) {
    Floats largest[2];  // of even and of odd rows: each waits for the one before
#pragma GCC unroll 16
    for (int r = 0; r < kGroupRows; ++r, products += kLanes) {
      const Floats score = load(products) + group.bias[r];
      largest[r % 2] = r < 2 ? score : max(largest[r % 2], score);
    }
    store(max(largest[0], largest[1]), high + v * kLanes);
  }
}
#endif

// Prefetches the codes of the next chunk into L2, in equal steps of bytes between which other work is done.
struct CodePrefetch {
  const char *at, *end;
  int64_t step;
  void advance() {
    for (const char* to = at + min(step, end - at); at < to; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// Groups of codes that are matched together.
struct Chunk {
  int64_t first, count;      // number of the first group, and of groups
  const CodeGroup* groups;   // (count)
  const float* codes;        // (count, group_size)
  const uint8_t* repeats;    // codes that have the score -inf since they equal an earlier one, or null
  const float* exact = nullptr;  // (count, exact_size) of short codes
};

// kV registers of columns, from column n on, against the codes of a chunk.
template <class Arithmetic, int kV>
struct Match {
  const NearestProblem& p;
  const Chunk& chunk;
  const Scratch& s;
  const int64_t n, steps = words_of<Arithmetic>(p.d), size = group_size(p.d, Arithmetic::kPacking);

  void score_group(int64_t g, float* scores, float* high) const {
    const float *codes = chunk.codes + g * size, *columns = s.columns + n * steps;
#if defined(__AMX_TILE__)
    if constexpr (kTiled<Arithmetic>) {
      multiply_groups<kGroupRows, kV>(steps / kTileSteps, codes, 0, columns, scores);
      store_sums<kGroupRows, kV>(scores);
    } else
#endif
      score<Arithmetic, kV>(steps, codes, chunk.groups[g], columns, s.unit + n, scores, high);
  }
  // Scores all groups of the chunk.
  void score_all(CodePrefetch& next) const {
#if defined(__AMX_TILE__)
    if constexpr (kTiled<Arithmetic>) {
      // While two groups are multiplied, the products of those before are looked through.
      float* before = s.scores;
      for (int64_t g = 0; g < chunk.count + 2; g += 2) {
        next.advance(), next.advance();
        if (g < chunk.count)
          multiply_groups<kGroupRows, kV>(steps / kTileSteps, chunk.codes + g * size, g + 1 < chunk.count ? size : 0,
                                          s.columns + n * steps, before);
        else
          store_sums<kGroupRows, kV>(before);
        for (int64_t own = max(g - 2, int64_t(0)); own < min(g, chunk.count); ++own)
          find_high<kV>(before + own % 2 * kScores, chunk.groups[own], high_of(own));
        if (p.keep_scores) before = s.scores + g * kScores;
      }
      return;
    }
#endif
    for (int64_t g = 0; g < chunk.count; ++g) {
      next.advance();
      score_group(g, scores_of(g), high_of(g));
    }
  }
  static constexpr int64_t kScores = kGroupRows * kV * kLanes;  // of a group
  // The scores of row r in a register of columns. Tiles store products, each register's rows one after another.
  Floats score_of(const float* scores, const CodeGroup& group, int r, int v) const {
    if constexpr (kTiled<Arithmetic>) return load(scores + (v * kGroupRows + r) * kLanes) + group.bias[r];
    return load(scores + (r * kV + v) * kLanes);
  }
  float* high_of(int64_t g) const { return s.high + g * kV * kLanes; }
  float* scores_of(int64_t g) const { return p.keep_scores ? s.scores + g * kScores : nullptr; }
  // The scores of a group, computed again if they weren't kept.
  const float* kept(int64_t g) const {
    if (p.keep_scores) return scores_of(g);
    alignas(64) float high[kV * kLanes];  // not to high_of(g), which has the errors added already
    score_group(g, s.scores, high);
    return s.scores;
  }
  // error(bound): B for each of the columns from `lane` on.
  auto errors(int64_t lane) const {
    return [length = load(s.length + lane), residual = load(s.residual + lane)](const Bound& of) {
      return length * of.of_length + (residual * of.of_residual + of.own);
    };
  }
  void raise(CodePrefetch& next) const;
  bool collect(const Codebook& book) const;
};

// Raises each column's low to the largest score - error of the codes, and leaves the largest score + error of each
// group in `high`.
template <class Arithmetic, int kV>
void Match<Arithmetic, kV>::raise(CodePrefetch& next) const {
  score_all(next);
  for (int v = 0; v < kV; ++v) {
    const int64_t lane = n + v * kLanes;
    const auto error_of = errors(lane);
    Floats low = load(s.low + lane);
    for (int64_t g = 0; g < chunk.count; ++g) {
      const CodeGroup& group = chunk.groups[g];
      float* high = high_of(g) + v * kLanes;
      Floats largest = load(high);
      if (group.mixed) {
        const float* scores = kept(g);
        largest = Floats{} - __builtin_inff();
        for (int r = 0; r < kGroupRows; ++r) {
          const Floats score = score_of(scores, group, r, v), error = error_of(group.own[r]);
          low = max(score - error, low);
          largest = max(score + error, largest);
        }
      } else {
        const Floats error = error_of(group.bound);
        low = max(largest - error, low);
        largest += error;
      }
      store(largest, high);
    }
    store(low, s.low + lane);
  }
}

// Adds the codes whose score + error reaches a column's low to its candidates. Returns false once repeats have become
// known that the chunk doesn't leave out: it is better matched again without them.
template <class Arithmetic, int kV>
bool Match<Arithmetic, kV>::collect(const Codebook& book) const {
  for (int v = 0; v < kV; ++v) {
    const int64_t lane = n + v * kLanes;
    const auto error_of = errors(lane);
    Floats low = load(s.low + lane);
    for (int64_t g = 0; g < chunk.count; ++g) {
      if (!lanes_at_least(load(high_of(g) + v * kLanes), low)) continue;
      const CodeGroup& group = chunk.groups[g];
      const float* scores = kept(g);
      // A bit for each code and column. Their number can't be foretold: one loop over them mispredicts once.
      constexpr int kWords = ceil_div(kGroupRows * kLanes, 64);
      uint64_t found[kWords] = {};
      int left = 0;
      const auto look = [&](auto error) {
#pragma GCC unroll 16
        for (int r = 0; r < kGroupRows; ++r) {
          const uint64_t lanes = lanes_at_least(score_of(scores, group, r, v) + error(r), low);
          found[r * kLanes / 64] |= lanes << r * kLanes % 64;
          left += __builtin_popcountll(lanes);
        }
      };
      const Floats error = error_of(group.bound);
      group.mixed ? look([&](int r) { return error_of(group.own[r]); }) : look([&](int) { return error; });
      for (; left; --left) {
        int word = kWords - 1;
        for (int w = kWords - 1; w >= 0; --w) word = found[w] ? w : word;
        const int bit = word * 64 + __builtin_ctzll(found[word]), r = bit / kLanes, at = bit % kLanes;
        found[word] &= found[word] - 1;
        const Bound& of = group.mixed ? group.own[r] : group.bound;
        const float own = s.length[lane + at] * of.of_length + (s.residual[lane + at] * of.of_residual + of.own);
        const float high = score_of(scores, group, r, v)[at] + own;
        add(p, book, s, lane + at, {high, int32_t((chunk.first + g) * kGroupRows + r)}, low[at]);
      }
      if (s.state->repeats != chunk.repeats) return false;
      low = load(s.low + lane);  // a lost vector has NaN
    }
  }
  return true;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
