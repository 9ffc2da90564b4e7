// The candidates of a block of vectors among a chunk of codes, for nearest.cpp, whose head proves the bounds.
#pragma once

#include "nearest/scratch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Takes a candidate of listed row n. Where there is no room, those that another has ruled out since are dropped, then
// codes that equal an earlier one; if that isn't enough, the row is lost to this pass.
void add(const Problem& p, const Codebook& book, const Scratch& s, int64_t n, Candidate candidate, float low) {
  Row& row = *s.list[n];
  State& state = *s.state;
  const auto repeats = [&](const Candidate& c) { return state.repeats && state.repeats[c.code]; };
  const auto keep = [&](auto f) {
    row.count = 0;
    for (int64_t c = 0; c < p.candidates; ++c)
      if (f(row.candidates[c])) row.candidates[row.count++] = row.candidates[c];
  };
  ++state.work.candidates;
  if (row.count == kAll) return;
  if (row.count == p.candidates) keep([&](const Candidate& c) { return c.high >= low; });
  if (row.count == p.candidates) {
    if (!state.repeats && --state.spare < 0) state.repeats = book.find_repeats(book);
    keep([&](const Candidate& c) { return !repeats(c); });
  }
  if (repeats(candidate)) return;
  if (row.count < p.candidates) {
    row.candidates[row.count++] = candidate;
  } else {
    row.count = kAll, s.low[n] = __builtin_nanf("");  // which nothing reaches
    ++state.lost;
  }
}

// Scores of a group of codes (kRows, kV vectors of columns), and the highest of each column.
template <class Product, int kV>
[[gnu::noinline]] void score(
    int64_t steps, const float* codes, const Group& group, const float* columns, const float* unit, float* scores,
    float* high) {
  constexpr bool kIntegers = Product::kPer == 4;
  Sums<Product, kRows, kV> sums;
  Vec most[kV];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v)
      if constexpr (kIntegers)
        sums.of[r][v] = Product::begin(group.start[r]);
      else
        sums.of[r][v] = group.bias[r] - Vec{};
  for (int64_t step = 0; step < steps; step += kLanes)
    sums.add(least(kLanes, steps - step), codes + step * kRows, kLanes, 1, columns + step * kV * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      if constexpr (kIntegers)
        sums.of[r][v] = Product::value(sums.of[r][v]) * load(unit + v * kLanes) * group.unit[r] + group.bias[r];
      if (scores) store(sums.of[r][v], scores + (r * kV + v) * kLanes);
      most[v] = r ? max(most[v], sums.of[r][v]) : sums.of[r][v];
    }
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) store(most[v], high + v * kLanes);
}

// Memory that is wanted soon, fetched in equal steps between which there is work to do.
struct Ahead {
  const char *at, *end;
  int64_t step;
  void advance() {
    for (const char* to = at + least(step, end - at); at < to; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// A chunk of codes, of which `first` is the first.
struct Chunk {
  int64_t first, count;  // in groups
  const Group* groups;
  const float* codes;
  const uint8_t* repeats;  // those that are left out
};

// kV vectors of columns from n on against the codes of a chunk.
template <class Product, int kV>
struct Match {
  const Problem& p;
  const Chunk& chunk;
  const Scratch& s;
  const int64_t n, steps = ceil_div(p.d, Product::kPer), size = group_size(p.d, Product::kPer);

  void score_group(int64_t g, float* scores, float* high) const {
    score<Product, kV>(
        steps, chunk.codes + g * size, chunk.groups[g], s.columns + n * steps, s.unit + n, scores, high);
  }
  float* high_of(int64_t g) const { return s.high + g * kV * kLanes; }
  float* scores_of(int64_t g) const { return p.keep ? s.scores + g * kRows * kV * kLanes : nullptr; }
  const float* kept(int64_t g) const {
    if (p.keep) return scores_of(g);
    alignas(64) float high[kV * kLanes];  // high_of(g) has the errors added already
    score_group(g, s.scores, high);
    return s.scores;
  }
  auto errors(int64_t lane) const {
    return [length = load(s.length + lane), residual = load(s.residual + lane)](const Bound& of) {
      return length * of.of_length + (residual * of.of_residual + of.own);
    };
  }
  void raise(Ahead& next) const;
  bool collect(const Codebook& book) const;
};

// Raises each row's low to what the best of the codes has at the least, and leaves the most that a group has in high.
template <class Product, int kV>
void Match<Product, kV>::raise(Ahead& next) const {
  for (int64_t g = 0; g < chunk.count; ++g) {
    next.advance();
    score_group(g, scores_of(g), high_of(g));
  }
  for (int v = 0; v < kV; ++v) {
    const int64_t lane = n + v * kLanes;
    const auto error_of = errors(lane);
    Vec low = load(s.low + lane);
    for (int64_t g = 0; g < chunk.count; ++g) {
      const Group& group = chunk.groups[g];
      float* high = high_of(g) + v * kLanes;
      Vec most = load(high);
      if (group.mixed) {
        const float* scores = kept(g) + v * kLanes;
        most = Vec{} - __builtin_inff();
        for (int r = 0; r < kRows; ++r) {
          const Vec score = load(scores + r * kV * kLanes), error = error_of(group.own[r]);
          low = max(score - error, low);
          most = max(score + error, most);
        }
      } else {
        const Vec error = error_of(group.bound);
        low = max(most - error, low);
        most += error;
      }
      store(most, high);
    }
    store(low, s.low + lane);
  }
}

// The candidates among the codes. Returns false once it is found which codes repeat others: they are better left out.
template <class Product, int kV>
bool Match<Product, kV>::collect(const Codebook& book) const {
  for (int v = 0; v < kV; ++v) {
    const int64_t lane = n + v * kLanes;
    const auto error_of = errors(lane);
    Vec low = load(s.low + lane);
    for (int64_t g = 0; g < chunk.count; ++g) {
      if (!at_least(load(high_of(g) + v * kLanes), low)) continue;
      const Group& group = chunk.groups[g];
      const float* scores = kept(g);
      // A bit for each lane of each row. How many there are can't be foretold: one loop errs once.
      constexpr int kWords = ceil_div(kRows * kLanes, 64);
      uint64_t found[kWords] = {};
      int left = 0;
      const auto look = [&](auto error) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const uint64_t lanes = at_least(load(scores + (r * kV + v) * kLanes) + error(r), low);
          found[r * kLanes / 64] |= lanes << r * kLanes % 64;
          left += __builtin_popcountll(lanes);
        }
      };
      const Vec error = error_of(group.bound);
      group.mixed ? look([&](int r) { return error_of(group.own[r]); }) : look([&](int) { return error; });
      for (; left; --left) {
        int word = kWords - 1;
        for (int w = kWords - 1; w >= 0; --w) word = found[w] ? w : word;
        const int bit = word * 64 + __builtin_ctzll(found[word]), r = bit / kLanes, at = bit % kLanes;
        found[word] &= found[word] - 1;
        const Bound& of = group.mixed ? group.own[r] : group.bound;
        const float own = s.length[lane + at] * of.of_length + (s.residual[lane + at] * of.of_residual + of.own);
        const float high = scores[(r * kV + v) * kLanes + at] + own;
        add(p, book, s, lane + at, {high, int32_t((chunk.first + g) * kRows + r)}, low[at]);
      }
      if (s.state->repeats != chunk.repeats) return false;
      low = load(s.low + lane);  // of rows that are lost
    }
  }
  return true;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
