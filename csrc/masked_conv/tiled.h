// Float32 by the CPU's tiles, where it has them: numbers in pieces, and sums of their products.
#pragma once

#include "masked_conv/masked_conv.h"
#include "simd/floats.h"
#include "simd/tiles.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Where the row and the column of one product begin, in numbers from `rows` and `columns` of a SumOfProducts.
struct Offset {
  int64_t row, column;
};

// The sum of several products of a few rows with one tile of columns. All products have the same strides and number of
// steps; numbers are of type A.
template <class A>
struct SumOfProducts {
  const A* from;            // (rows, kColumns), what the sums begin with
  int64_t from_stride;      // distance of its rows; 0 if all begin with the same
  const A *rows, *columns;
  const Offset* offsets;    // (products)
  int64_t products, steps, row_stride, step_stride;  // see Sums::add
  A* to;                    // (rows, kColumns), the result
  int64_t to_stride;        // distance of its rows
  int64_t piece_stride = 0; // of pieces
};

constexpr int64_t kTiledRows = 2 * kMostRows;  // that are multiplied at a time

#if defined(__AMX_TILE__)
constexpr bool kHasTiles = true;

// The largest numbers of which sums of products by tiles don't overflow, where those of float32 might not: as infinite
// pieces would make NaN, all larger ones, infinite ones too, are for registers.
constexpr float kMost = 0x1p50f;

// Whether all numbers are at most that, as NaN isn't.
bool fit(const float* numbers, int64_t count) {
  Ints most{};
  for (int64_t i = 0; i < count; i += kLanes) most = max(most, (Ints)load(numbers + i) & 0x7fffffff);
  return !lanes_above(most, Ints{} + __builtin_bit_cast(int32_t, kMost));
}

// Writes the pieces of two registers, a word of both in each lane, `apart` words from each other.
[[gnu::always_inline]] inline void store_pieces(Floats a, Floats b, float* to, int64_t apart) {
  Bits32 pieces[Float32Pieces::kPieces];
  split(a, b, pieces);
  for (int piece = 0; piece < Float32Pieces::kPieces; ++piece) store(pieces[piece], to + piece * apart);
}

// Sums of products for kG groups of rows, the second of which is `group` rows after the first.
template <int kG>
void multiply_groups(const SumOfProducts<float>& w, int64_t group) {
  asm volatile("" ::: "memory");  // else the compiler may write what is loaded after it is
  const float* second = w.from + group * w.from_stride;
  _tile_loadd(0, w.from, 4 * w.from_stride);
  _tile_loadd(1, w.from + kLanes, 4 * w.from_stride);
  if constexpr (kG > 1) {
    _tile_loadd(2, second, 4 * w.from_stride);
    _tile_loadd(3, second + kLanes, 4 * w.from_stride);
  }
  for (int64_t i = 0; i < w.products; ++i)
    add_products_of_pieces<kG, 2>(
        w.steps, w.rows + w.offsets[i].row, w.row_stride, group * w.row_stride, w.columns + w.offsets[i].column,
        w.piece_stride, w.step_stride);
  store_tile<0>(w.to, w.to_stride);
  store_tile<1>(w.to + kLanes, w.to_stride);
  if constexpr (kG > 1) {
    store_tile<2>(w.to + group * w.to_stride, w.to_stride);
    store_tile<3>(w.to + group * w.to_stride + kLanes, w.to_stride);
  }
}

// For 1 to kTiledRows rows; steps are blocks of pieces. Two groups may share a row, which is computed twice.
[[gnu::noinline]] void multiply_tiled(Tiles& tiles, int64_t rows, const SumOfProducts<float>& w) {
  const int64_t each = rows > kMostRows ? (rows + 1) / 2 : rows;
  tiles.have(each);
  rows > kMostRows ? multiply_groups<2>(w, rows - each) : multiply_groups<1>(w, 0);
}
#else
constexpr bool kHasTiles = false;
struct Tiles {};
bool fit(const float*, int64_t) { return true; }
void store_pieces(Floats, Floats, float*, int64_t) {}
void multiply_tiled(Tiles&, int64_t, const SumOfProducts<float>&) {}
#endif

}  // namespace
}  // namespace vqfast::VQFAST_ISA
