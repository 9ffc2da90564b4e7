// The candidates of few vectors, by distances in float32 from the codes where they are.
//
// Nothing is centred, rounded or packed: of few vectors that takes longer than their products. A distance of float32
// differences has an error in proportion to itself whatever the offset of the data, see `decide`: (D + 2) u, and
// D 2^-126 where squares underflow. kLanes distances, of some vectors to some codes, are summed at once, each in a
// register of its own, and their lanes are added by one transposition.
#pragma once

#include "nearest/match.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kDirectVectors = 8;  // up to so many, a code costs less than to prepare and multiply it
constexpr int64_t kDirectCodes = 256;  // whose distances are kept at a time

// Adds the lanes of each of kLanes rows: lane r of the first one becomes the sum of row r.
template <int kHalf>
[[gnu::always_inline]] inline void add_lanes(Floats* rows) {
#pragma GCC unroll 16
  for (int r = 0; r < kHalf; ++r) {
    exchange<kHalf>(rows[r], rows[r + kHalf], std::make_integer_sequence<int, kLanes>{});
    rows[r] += rows[r + kHalf];
  }
  if constexpr (kHalf > 1) add_lanes<kHalf / 2>(rows);
}

// The squared distances of kV vectors, x (kV, width) with zeros past D, to codes [begin, end), at most kDirectCodes of
// them: (ceil((end - begin) / kC), kV, kC), where kV * kC = kLanes. Those past `end` are distances to the last code.
template <int kV>
[[gnu::noinline]] void distances(
    const NearestProblem& p, const float* codes, Span span, const float* x, int64_t width, float* to) {
  constexpr int kC = kLanes / kV;
  const int64_t whole = p.d / kLanes * kLanes, rest = p.d - whole;
  Bits32 mask;
  for (int l = 0; l < kLanes; ++l) mask[l] = l < rest ? ~0u : 0;
  for (int64_t k = span.begin; k < span.end; k += kC, to += kLanes) {
    const float* code[kC];
    for (int c = 0; c < kC; ++c) code[c] = codes + min(k + c, span.end - 1) * p.d;
    Floats sums[kLanes] = {};
    const auto add = [&](int64_t i, auto number) {
#pragma GCC unroll 16
      for (int c = 0; c < kC; ++c) {
        const Floats e = number(code[c] + i);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) {
          const Floats away = e - load(x + v * width + i);
          sums[v * kC + c] += away * away;
        }
      }
    };
    for (int64_t i = 0; i < whole; i += kLanes) add(i, [](const float* at) { return load(at); });
    if (rest && k + kC + ceil_div(kLanes, p.d) < p.k)  // what is read past a code are other codes
      add(whole, [&](const float* at) { return (Floats)((Bits32)load(at) & mask); });
    else if (rest)
      add(whole, [&](const float* at) { return load_part<Floats>(at, rest); });
    add_lanes<kLanes / 2>(sums);
    store(sums[0], to);
  }
}

// Finds the candidates of kV vectors from number n on among codes [begin, end), at most kDirectCodes of them.
template <int kV>
void find_near(const NearestProblem& p, const Codebook& book, Span span, int64_t n, int64_t width, const Scratch& s) {
  constexpr int kC = kLanes / kV;
  alignas(64) float found[kDirectCodes * kV + kLanes];
  distances<kV>(p, static_cast<const float*>(book.codes), span, s.columns + n * width, width, found);
  const int64_t groups = ceil_div(count_of(span), kC);
  const float error = 0x1.1p-24f * float(p.d + 6), tiny = 0x1p-126f * float(p.d);
  Floats nearest = Floats{} + __builtin_inff(), low;
  for (int64_t g = 0; g < groups; ++g) {
    const Floats here = load(found + g * kLanes);
    nearest = here < nearest ? here : nearest;
  }
  for (int v = 0; v < kV; ++v) {
    float own = nearest[v * kC];
    for (int c = 1; c < kC; ++c) own = nearest[v * kC + c] < own ? nearest[v * kC + c] : own;
    const float bound = (own * (1 + error) + tiny) / -2;
    s.low[n + v] = bound > s.low[n + v] ? bound : s.low[n + v];
    for (int c = 0; c < kC; ++c) low[v * kC + c] = s.low[n + v];
  }
  for (int64_t g = 0; g < groups; ++g) {
    const Floats high = load(found + g * kLanes) * ((1 - error) / -2);
    for (uint32_t lanes = lanes_at_least(high, low); lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes), v = lane / kC;
      const int64_t k = span.begin + g * kC + lane % kC;
      if (k < span.end) add(p, book, s, n + v, {high[lane], int32_t(k)}, s.low[n + v]);
    }
  }
}

// Finds the candidates of `count` listed vectors, at most kDirectVectors, in some groups of codes. The bounds `high`
// and `low` are those of -|x - e|^2 / 2, which is t but for the vector's own |a|^2 / 2.
template <class T>
void search_directly(const NearestProblem& p, const Codebook& book, Span groups, int64_t count, const Scratch& s) {
  const int64_t width = ceil_div(p.d, kLanes) * kLanes, last = min(groups.end * kGroupRows, p.k);
  State& state = *s.state;
  state.repeats = __atomic_load_n(&book.repeats, __ATOMIC_ACQUIRE), state.spare = count, state.lost = 0;
  for (int64_t n = 0; n < count; ++n) {
    const T* x = static_cast<const T*>(p.x) + s.list[n]->x;
    float* to = s.columns + n * width;
    for (int64_t i = 0; i < p.d; ++i) to[i] = float(x[i * p.d_stride]);
    for (int64_t i = p.d; i < width; ++i) to[i] = 0;
    s.list[n]->square = 0, s.list[n]->count = 0, s.low[n] = -__FLT_MAX__;
  }
  for (int64_t first = groups.begin * kGroupRows; first < last; first += kDirectCodes) {
    const Span span{first, min(first + kDirectCodes, last)};
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) find_near<4>(p, book, span, n, width, s);
    for (; n + 2 <= count; n += 2) find_near<2>(p, book, span, n, width, s);
    for (; n < count; ++n) find_near<1>(p, book, span, n, width, s);
    state.counts.products += count * count_of(span);
  }
  // Where distances overflow they tell nothing, unless the vector isn't finite: then it has no candidates.
  for (int64_t n = 0; n < count; ++n) {
    Vector& vector = *s.list[n];
    vector.low = s.low[n];
    if (vector.low < -0x1p100f) vector.count = all_finite(p, static_cast<const T*>(p.x) + vector.x) ? kAll : 0;
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
