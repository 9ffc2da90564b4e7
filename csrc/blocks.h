// Blocks of a masked convolution's positions, and the products that their sums are made of.
#pragma once

#include "floats.h"
#include "masked_conv.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int kMost = kRows - (kRows > 6);  // with one row fewer the loop needs no register but the CPU's own
constexpr int64_t kSegment = 5 * kMost;  // positions whose sums wait to be activated

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What the sums of a type are made of.
template <class T>
struct Types {
  using Product = typename Accumulate<T>::Product;
  using A = typename Product::Element;
  using V = typename Product::Vector;
  static constexpr int kLanes = sizeof(V) / sizeof(A), kColumns = kVectors * kLanes;
};

// ------------------------------------------------------------------------------------------------ blocks

// The offsets that the taps reach, the own position included.
struct Reach {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  explicit Reach(const MaskedConv& p) {
    for (int64_t t = 0; t < p.taps; ++t) {
      top = least(top, p.dy[t]), bottom = most(bottom, p.dy[t]);
      left = least(left, p.dx[t]), right = most(right, p.dx[t]);
    }
  }
  bool none() const { return !(top | bottom | left | right); }
};

struct Block {
  int64_t sample;
  Span rows, columns;
};

int64_t across(const MaskedConv& p) { return ceil_div(p.width, p.columns); }
int64_t down(const MaskedConv& p) { return ceil_div(p.height, p.rows); }
int64_t blocks(const MaskedConv& p) { return p.batch * down(p) * across(p); }

Block locate(const MaskedConv& p, int64_t block) {
  const int64_t column = block % across(p), row = block / across(p) % down(p);
  return {block / across(p) / down(p), part_of(p.height, down(p), row), part_of(p.width, across(p), column)};
}

// Rows, then samples, become one long row where memory and taps allow it.
void flatten(MaskedConv& p) {
  if (!Reach(p).none()) return;
  const auto merge = [&](int64_t& count, int64_t Grid::*outer, int64_t Grid::*inner) {
    for (const Grid* g : {&p.x, &p.extra, &p.residual, &p.result, &p.kept})
      if (g->at && g->*outer != g->*inner * p.width) return;
    p.width *= count;
    count = 1;
  };
  merge(p.height, &Grid::row, &Grid::column);
  if (p.height == 1) merge(p.batch, &Grid::sample, &Grid::column);
}

// ----------------------------------------------------------------------------------------------- products

// Two neighbours y0, y1 that share their inputs cost fewer products than twice the taps, one more than taps that are
// side by side (Toom 1963; Winograd 1980, "Arithmetic Complexity of Computations"). With inputs d and taps g,
//   of two:   y0 = (d0 - d1) g0 + d1 (g0 + g1),   y1 = -(d1 - d2) g1 + d1 (g0 + g1),
//   of three: y0 = (d0 - d2) g0 + S + D,          y1 = -(d1 - d3) g2 + S - D,
//     S = (d1 + d2) (g0 + g1 + g2) / 2,           D = -(d1 - d2) (g0 - g1 + g2) / 2.
// So four sums run over all taps and channels: y0's own, y1's own, S and D. Their numbers are neighbours' differences
// and sums, at most twice as large as the inputs, so float32 loses a bit; float64 is computed tap by tap. No output
// reads what none of its own taps see. The weight's gradient takes the same products, turned round.
enum View : int64_t { kItself, kNext, kAfterNext, kBoth, kViews };  // d[i], d[i] - d[i+1], d[i] - d[i+2], d[i] + d[i+1]
enum Sum : int64_t { kFirst, kSecond, kShared, kOpposed, kSums };

struct Rule {
  int64_t sum, view, shift;
  float factors[3];
};
constexpr Rule kRules[3][kSums] = {
    {{kFirst, kItself, 0, {1}}, {kSecond, kItself, 1, {1}}, {-1}, {-1}},
    {{kFirst, kNext, 0, {1}}, {kSecond, kNext, 1, {0, -1}}, {kShared, kItself, 1, {1, 1}}, {-1}},
    {{kFirst, kAfterNext, 0, {1}}, {kSecond, kAfterNext, 1, {0, 0, -1}}, {kShared, kBoth, 1, {.5f, .5f, .5f}},
     {kOpposed, kNext, 1, {-.5f, .5f, -.5f}}}};

// f(product of the taps as they are, their number) for each run of up to three taps side by side.
template <class F>
void for_runs(const MaskedConv& p, F f) {
  for (int64_t t = 0, count; t < p.taps; t += count) {
    const auto follows = [&](int64_t n, int64_t step) {
      return t + n < p.taps && p.dy[t + n] == p.dy[t] && p.dx[t + n] == p.dx[t] + n * step;
    };
    const int64_t step = follows(1, 1) - follows(1, -1);
    for (count = 1; step && count < 3 && follows(count, step);) ++count;
    Product run{kItself, p.dy[t], least(p.dx[t], p.dx[t + count - 1]), {}, {}};
    for (int64_t n = 0; n < count; ++n) run.taps[step < 0 ? count - 1 - n : n] = p.tap[t + n];
    f(run, count);
  }
}

void plan_products(MaskedConv& p) {
  int64_t pair = 0, filled = 0;
  for_runs(p, [&](const Product&, int64_t count) { pair += count + 1; });
  p.paired = p.products && !p.codes && p.type != Type::f64 && p.width >= 4 && pair < 2 * p.taps;
  for (int64_t sum = 0; sum < kSums; ++sum) {
    p.first[sum] = filled;
    if (!p.paired) {
      for (int64_t t = 0; t < p.taps && p.products && sum == 0; ++t)
        p.products[t] = {kItself, p.dy[t], p.dx[t], {p.tap[t]}, {1}};
      filled = p.taps;
      continue;
    }
    for_runs(p, [&](Product run, int64_t count) {
      const Rule& rule = kRules[count - 1][sum];
      if (rule.sum < 0) return;
      run.view = rule.view, run.dx += rule.shift;
      for (int64_t n = 0; n < count; ++n) run.factors[n] = rule.factors[n];
      p.products[filled++] = run;
    });
  }
  p.first[kSums] = filled;
}

// Blocks whose patch takes a quarter of L2, and enough of them.
void plan(MaskedConv& p, int64_t threads) {
  flatten(p);
  plan_products(p);
  const int64_t fair = ceil_div(p.batch * p.height * p.width, threads);
  const int64_t wanted = least(256, 32768 / most(1, p.in)) / (p.paired ? 2 : 1);
  const int64_t positions = most(1, least(fair, most(kSegment, wanted)));
  p.columns = most(1, least(p.width, positions));  // one, where there are none
  p.rows = most(1, least(p.height, positions / p.columns));
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
