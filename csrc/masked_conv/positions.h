// Blocks of positions, which are computed by one thread at a time.
#pragma once

#include "masked_conv/tiled.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The rows that are multiplied at a time. With kTileRows of 12 the compiler would move registers to memory and back.
constexpr int kMaxRows = kTileRows - (kTileRows > 6);
// Positions, and clusters of four, whose sums are in L1 before they are activated. Where few rows are multiplied at a
// time, the weight is read from the second cache for several runs of them.
constexpr int64_t kBandPositions = 5 * kMaxRows, kBandClusters = kMaxRows > 6 ? kMaxRows : 4 * kMaxRows;

// The same of tiles: a matrix of the weight, which takes half of L1, is read once for all of them.
constexpr int64_t kTiledBand = kHasTiles ? 64 : 0;
constexpr int64_t kMostPositions = max(kBandPositions, kTiledBand), kMostClusters = max(kBandClusters, kTiledBand);

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The words that so many channels take in the patch and the packed weight: one each, or blocks of pieces.
int64_t words(const MaskedConvProblem& p, int64_t channels) {
  return p.tiled && !p.of_weight ? ceil_div(channels, kBlockChannels) * kBlockWords : channels;
}

// For numbers of type T: the arithmetic, the type of its numbers and registers, and the size of a tile's columns.
template <class T>
struct Types {
  using Arithmetic = typename Accumulate<T>::Arithmetic;
  using A = typename Arithmetic::Element;
  using V = typename Arithmetic::Register;
  static constexpr int kLanes = sizeof(V) / sizeof(A), kColumns = kTileRegisters * kLanes;
};

// Whether a problem's numbers take fewer bits than those that it is computed with.
bool is_narrow(const MaskedConvProblem& p) { return p.precision == Precision::bf16 || p.precision == Precision::f16; }

// How far the taps reach from a position, in rows and columns; its own counts too.
struct Reach {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  explicit Reach(const MaskedConvProblem& p) {
    for (int64_t t = 0; t < p.num_taps; ++t) {
      top = min(top, p.dy[t]), bottom = max(bottom, p.dy[t]);
      left = min(left, p.dx[t]), right = max(right, p.dx[t]);
    }
  }
  bool none() const { return !(top | bottom | left | right); }
};

// Positions of one sample: some rows and some columns of them.
struct PositionBlock {
  int64_t sample;
  Span rows, columns;
};

// Blocks side by side, one above the other, and all.
int64_t across(const MaskedConvProblem& p) { return ceil_div(p.width, p.block_columns); }
int64_t down(const MaskedConvProblem& p) { return ceil_div(p.height, p.block_rows); }
int64_t blocks(const MaskedConvProblem& p) { return p.batch * down(p) * across(p); }

// A block by its number.
PositionBlock locate(const MaskedConvProblem& p, int64_t block) {
  const int64_t column = block % across(p), row = block / across(p) % down(p);
  return {block / across(p) / down(p), part_of(p.height, down(p), row), part_of(p.width, across(p), column)};
}

// Makes rows, then samples, one long row where taps read their own position alone and the memory allows it.
void flatten(MaskedConvProblem& p) {
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

}  // namespace
}  // namespace vqfast::VQFAST_ISA
