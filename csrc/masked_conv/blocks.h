// Blocks of a masked convolution's positions, and the products that their sums are made of.
#pragma once

#include "simd/floats.h"
#include "masked_conv/masked_conv.h"

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

// Neighbours y0 .. y3 that share their inputs cost fewer products than four times the taps (Toom 1963; Winograd 1980,
// "Arithmetic Complexity of Computations"). With inputs d and taps g,
//   of two:   y0 = (d0 - d1) g0 + S,      y1 = -(d1 - d2) g1 + S,      S = d1 (g0 + g1), and so y2, y3: 6 for 8;
//   of three: y0 = (d0 - d2) g0 + S + D,  y1 = -(d1 - d3) g2 + S - D,  and so y2, y3: 8 for 12,
//     S = (d1 + d2) (g0 + g1 + g2) / 2,   D = -(d1 - d2) (g0 - g1 + g2) / 2;
//   wide, of three: what the polynomials are at 0, 1, -1, 2, -1/2 and infinity: 6 for 12.
// So some sums run over all taps and channels, and outputs are made of them. The numbers that take the place of x are
// small multiples of it, so float32 loses a bit or two, about what an order of summation does; float64 is computed tap
// by tap. A wide product reads, to rounding, up to three columns beyond its taps: it is for rows of which all is seen,
// those with taps on both sides. No output reads what comes later. The weight's gradient takes the same products,
// turned round.
enum Sum : int64_t { kOwn, kShared = 4, kOpposed, kShared2, kOpposed2, kAt, kSums = 12 };
constexpr int64_t kTogether = 4;

// y_i += kOutputs[sum][i] * sum
constexpr float kOutputs[kSums][kTogether] = {
    {1}, {0, 1}, {0, 0, 1}, {0, 0, 0, 1}, {1, 1}, {1, -1}, {0, 0, 1, 1}, {0, 0, 1, -1},
    {1, 1, 1, 1}, {1, -1, 1, -1}, {1, 2, 4, 8}, {1, -.5f, .25f, -.125f}};

// What a kind of product makes of `inputs` numbers from a group's first column on: view by view, a combination of them,
// the sum that it counts to, and the number of its matrix. A matrix is a combination of the taps'.
struct View {
  int64_t sum, matrix;
  float inputs[6];
};
struct Kind {
  int64_t taps, inputs, views, matrices;
  View view[8];
  float factors[6][3];
};
enum { kLone, kTwo, kThree, kWide };
constexpr Kind kKinds[] = {
    {1, 4, 4, 1, {{0, 0, {1}}, {1, 0, {0, 1}}, {2, 0, {0, 0, 1}}, {3, 0, {0, 0, 0, 1}}}, {{1}}},
    {2, 5, 6, 3,
     {{0, 0, {1, -1}}, {1, 2, {0, 1, -1}}, {kShared, 1, {0, 1}},
      {2, 0, {0, 0, 1, -1}}, {3, 2, {0, 0, 0, 1, -1}}, {kShared2, 1, {0, 0, 0, 1}}},
     {{1}, {1, 1}, {0, -1}}},
    {3, 6, 8, 4,
     {{0, 0, {1, 0, -1}}, {1, 3, {0, 1, 0, -1}}, {kShared, 1, {0, 1, 1}}, {kOpposed, 2, {0, 1, -1}},
      {2, 0, {0, 0, 1, 0, -1}}, {3, 3, {0, 0, 0, 1, 0, -1}}, {kShared2, 1, {0, 0, 0, 1, 1}},
      {kOpposed2, 2, {0, 0, 0, 1, -1}}},
     {{1}, {.5f, .5f, .5f}, {-.5f, .5f, -.5f}, {0, 0, -1}}},
    {3, 6, 6, 6,
     {{0, 0, {1, 1.5f, -2, -1.5f, 1}}, {kAt, 1, {0, -1, -2.5f, -.5f, 1}}, {kAt + 1, 2, {0, 1, .5f, -2.5f, 1}},
      {kAt + 2, 3, {0, -.5f, -1, .5f, 1}}, {kAt + 3, 4, {0, 2, -1, -2, 1}}, {3, 5, {0, 1, 1.5f, -2, -1.5f, 1}}},
     {{1}, {-1 / 3.f, -1 / 3.f, -1 / 3.f}, {1 / 3.f, -1 / 3.f, 1 / 3.f}, {1 / 15.f, 2 / 15.f, 4 / 15.f},
      {-16 / 15.f, 8 / 15.f, -4 / 15.f}, {0, 0, 1}}}};

// A run of up to three taps side by side, from the left.
struct Run {
  int64_t kind, dy, dx, taps[3];
};

// f(run) for each.
template <class F>
void for_runs(const MaskedConv& p, F f) {
  for (int64_t t = 0, count; t < p.taps; t += count) {
    const auto follows = [&](int64_t n, int64_t step) {
      return t + n < p.taps && p.dy[t + n] == p.dy[t] && p.dx[t + n] == p.dx[t] + n * step;
    };
    const int64_t step = follows(1, 1) - follows(1, -1);
    for (count = 1; step && count < 3 && follows(count, step);) ++count;
    bool left = false, right = false;
    for (int64_t n = 0; n < p.taps; ++n) {
      left |= p.dy[n] == p.dy[t] && p.dx[n] < 0;
      right |= p.dy[n] == p.dy[t] && p.dx[n] > 0;
    }
    Run run{count == 3 && left && right ? kWide : kLone + count - 1, p.dy[t], least(p.dx[t], p.dx[t + count - 1]), {}};
    for (int64_t n = 0; n < count; ++n) run.taps[step < 0 ? count - 1 - n : n] = p.tap[t + n];
    f(run);
  }
}

// The number of a look, which then has the run's row.
int64_t find_look(MaskedConv& p, const Run& run) {
  int64_t i = 0;
  while (i < p.num_looks && (p.looks[i].kind != run.kind || p.looks[i].dx != run.dx)) ++i;
  if (i == p.num_looks) p.looks[p.num_looks++] = {run.kind, run.dx, run.dy, run.dy};
  p.looks[i].top = least(p.looks[i].top, run.dy), p.looks[i].bottom = most(p.looks[i].bottom, run.dy);
  return i;
}

void plan_products(MaskedConv& p) {
  int64_t views = 0;
  for_runs(p, [&](const Run& run) { views += kKinds[run.kind].views; });
  const bool fewer = ceil_div(p.width, kTogether) * views < p.width * p.taps;
  p.together = p.products && !p.codes && p.type != Type::f64 && fewer ? kTogether : 1;
  p.num_looks = 0, p.num_matrices = p.taps;
  if (!p.products) return;
  if (p.together == 1) {
    for (int64_t t = 0; t < p.taps; ++t) {
      p.products[t] = {-1, 0, p.dy[t], p.dx[t], t};
      p.matrices[t] = {{p.tap[t]}, {1}};
    }
    for (int64_t sum = 0; sum < kSums; ++sum) p.first[sum + 1] = p.taps;
    return;
  }
  int64_t filled = 0;
  for (int64_t sum = 0; sum < kSums; ++sum) {
    p.first[sum] = filled, p.num_matrices = 0;
    for_runs(p, [&](const Run& run) {
      const Kind& kind = kKinds[run.kind];
      for (int64_t v = 0; v < kind.views; ++v)
        if (kind.view[v].sum == sum)
          p.products[filled++] = {find_look(p, run), v, run.dy, run.dx, p.num_matrices + kind.view[v].matrix};
      for (int64_t m = 0; m < kind.matrices; ++m) {
        Matrix& matrix = p.matrices[p.num_matrices++] = {};
        for (int64_t k = 0; k < kind.taps; ++k) matrix.taps[k] = run.taps[k], matrix.factors[k] = kind.factors[m][k];
      }
    });
  }
  p.first[kSums] = filled;
}

// Blocks whose patch takes a quarter of L2, and enough of them.
void plan(MaskedConv& p, int64_t threads) {
  flatten(p);
  plan_products(p);
  const int64_t fair = ceil_div(p.batch * p.height * p.width, threads);
  const int64_t wanted = least(256, 32768 / most(1, p.in));
  const int64_t positions = most(1, least(fair, most(kSegment, wanted)));
  p.columns = most(1, least(p.width, positions));  // one, where there are none
  p.rows = most(1, least(p.height, positions / p.columns));
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
