// The products that sums are made of: one for each tap, or fewer where neighbours are computed together.
//
// Neighbours y0 .. y3 that share their inputs cost fewer products than four times the taps (Toom 1963; Winograd 1980,
// "Arithmetic Complexity of Computations"). With inputs d and taps g,
//   of two:   y0 = (d0 - d1) g0 + S,      y1 = -(d1 - d2) g1 + S,      S = d1 (g0 + g1), and so y2, y3: 6 for 8;
//   of three: y0 = (d0 - d2) g0 + S + D,  y1 = -(d1 - d3) g2 + S - D,  and so y2, y3: 8 for 12,
//     S = (d1 + d2) (g0 + g1 + g2) / 2,   D = -(d1 - d2) (g0 - g1 + g2) / 2;
//   wide, of three: the values of the polynomials at 0, 1, -1, 2, -1/2 and infinity: 6 for 12.
// Sums like S run over all taps and channels, and outputs are made of them. The numbers that take the place of x are
// small multiples of it, so float32 loses a bit or two, about as much as by another order of summation; float64 is
// computed tap by tap. A wide product reads up to three columns beyond its taps, whose contributions cancel but for
// rounding. So it is for rows that are visible on both sides, and no output depends on a later position. The gradient
// of the weight takes the same products, turned round.
#pragma once

#include "masked_conv/positions.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The sums of a cluster: each output's own; S and D of the first two outputs, and of the last two; and the values of
// the wide kind's polynomials at 1, -1, 2 and -1/2, from kAt on.
enum Sum : int64_t { kOwn, kShared = 4, kOpposed, kShared2, kOpposed2, kAt };
constexpr int64_t kCluster = 4;  // positions of a cluster

// Output i of a cluster is the sum over all sums of kOutputs[sum][i] * sum.
constexpr float kOutputs[kSums][kCluster] = {
    {1}, {0, 1}, {0, 0, 1}, {0, 0, 0, 1}, {1, 1}, {1, -1}, {0, 0, 1, 1}, {0, 0, 1, -1},
    {1, 1, 1, 1}, {1, -1, 1, -1}, {1, 2, 4, 8}, {1, -.5f, .25f, -.125f}};

// A view: the numbers sum over i of inputs[i] * x at column first + i, for each cluster whose products begin at
// `first`.
// Times a matrix, it is added to a sum.
struct View {
  int64_t sum, matrix;
  float inputs[6];
};
// A kind of run of taps: how many taps it has and columns it reads, the views of these, and its matrices, of which m is
// the sum over its taps k of factors[m][k] * the tap's matrix.
struct RunKind {
  int64_t taps, inputs, views, matrices;
  View view[8];
  float factors[6][3];
};
enum { kLone, kTwo, kThree, kWide, kSelf };  // the last is x itself, of which tiles read pieces
constexpr RunKind kRunKinds[] = {
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
      {-16 / 15.f, 8 / 15.f, -4 / 15.f}, {0, 0, 1}}},
    {0, 1, 1, 0, {{0, 0, {1}}}, {}}};

// A run of up to three taps side by side: where its leftmost reads, and their numbers in the window, from the left.
struct Run {
  int64_t kind, dy, dx, taps[3];
};

// f(run) for all runs that the taps fall into.
template <class F>
void for_runs(const MaskedConvProblem& p, F f) {
  for (int64_t t = 0, count; t < p.num_taps; t += count) {
    const auto follows = [&](int64_t n, int64_t step) {
      return t + n < p.num_taps && p.dy[t + n] == p.dy[t] && p.dx[t + n] == p.dx[t] + n * step;
    };
    const int64_t step = follows(1, 1) - follows(1, -1);
    for (count = 1; step && count < 3 && follows(count, step);) ++count;
    bool left = false, right = false;
    for (int64_t n = 0; n < p.num_taps; ++n) {
      left |= p.dy[n] == p.dy[t] && p.dx[n] < 0;
      right |= p.dy[n] == p.dy[t] && p.dx[n] > 0;
    }
    Run run{count == 3 && left && right ? kWide : kLone + count - 1, p.dy[t], min(p.dx[t], p.dx[t + count - 1]), {}};
    for (int64_t n = 0; n < count; ++n) run.taps[step < 0 ? count - 1 - n : n] = p.tap[t + n];
    f(run);
  }
}

// The number of the set of a run's views, which from then on has the run's row.
int64_t find_view_set(MaskedConvProblem& p, const Run& run) {
  int64_t i = 0;
  while (i < p.num_view_sets && (p.view_sets[i].kind != run.kind || p.view_sets[i].dx != run.dx)) ++i;
  if (i == p.num_view_sets) p.view_sets[p.num_view_sets++] = {run.kind, run.dx, run.dy, run.dy};
  p.view_sets[i].top = min(p.view_sets[i].top, run.dy), p.view_sets[i].bottom = max(p.view_sets[i].bottom, run.dy);
  return i;
}

// Whether the CPU's tiles take less time, with the making of pieces, of which channels fill whole blocks. With fewer
// channels they take up to 1.4 times as long as registers. The gradient of the weight has pieces of both sides, of
// positions, of which few waste much.
bool tiles_pay(const MaskedConvProblem& p) {
  const int64_t in = p.in_channels, out = p.out_channels;
  if (!kHasTiles || in < kBlockChannels || out < kLanes) return false;
  if (p.of_weight) return p.height * p.width >= 192 && in * out >= (p.num_taps > 1 ? 48 : 72) * (in + out);
  return 3 * round_up(in, kBlockChannels) <= 4 * in && p.num_taps * out >= 128;
}

// Decides whether neighbours are computed together, and lists the products.
void plan_products(MaskedConvProblem& p) {
  int64_t views = 0;
  for_runs(p, [&](const Run& run) { views += kRunKinds[run.kind].views; });
  const bool fewer = ceil_div(p.width, kCluster) * views < p.width * p.num_taps;
  p.cluster = p.products && !p.codes && p.precision != Precision::f64 && fewer ? kCluster : 1;
  p.tiled &= p.products && !p.codes && p.precision == Precision::f32 && tiles_pay(p);
  p.num_view_sets = 0, p.num_matrices = p.num_taps;
  if (!p.products) return;
  if (p.cluster == 1) {
    for (int64_t t = 0; t < p.num_taps; ++t) {
      p.products[t] = {0, 0, p.dy[t], p.dx[t], t};
      p.matrices[t] = {{p.tap[t]}, {1}};
    }
    const Reach reach(p);
    if (p.tiled) p.view_sets[p.num_view_sets++] = {kSelf, reach.left, reach.top, reach.bottom};
    for (int64_t sum = 0; sum < kSums; ++sum) p.first_product[sum + 1] = p.num_taps;
    return;
  }
  int64_t filled = 0;
  for (int64_t sum = 0; sum < kSums; ++sum) {
    p.first_product[sum] = filled, p.num_matrices = 0;
    for_runs(p, [&](const Run& run) {
      const RunKind& kind = kRunKinds[run.kind];
      for (int64_t v = 0; v < kind.views; ++v)
        if (kind.view[v].sum == sum)
          p.products[filled++] = {find_view_set(p, run), v, run.dy, run.dx, p.num_matrices + kind.view[v].matrix};
      for (int64_t m = 0; m < kind.matrices; ++m) {
        TapMatrix& matrix = p.matrices[p.num_matrices++] = {};
        for (int64_t k = 0; k < kind.taps; ++k) matrix.taps[k] = run.taps[k], matrix.factors[k] = kind.factors[m][k];
      }
    });
  }
  p.first_product[kSums] = filled;
}

// Plans blocks whose patch takes a quarter of L2, or smaller ones, so that there is one for each thread. Those of tiles
// are larger: for each block these read the whole weight, or read and write the sums of its gradient.
void plan(MaskedConvProblem& p, int64_t threads) {
  flatten(p);
  plan_products(p);
  const int64_t share = ceil_div(p.batch * p.height * p.width, threads);
  const bool many = p.num_matrices * p.in_channels * p.out_channels > 1 << 19;
  const int64_t patch = min(256, (p.tiled ? 65536 : 32768) / max(1, p.in_channels));
  const int64_t in_cache = p.tiled && p.of_weight ? 256 << many : patch;
  const int64_t positions = max(1, min(share, max(kBandPositions, in_cache)));
  p.block_columns = max(1, min(p.width, positions));  // 1 of an empty grid
  p.block_rows = max(1, min(p.height, positions / p.block_columns));
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
