// The CPU's tiles (AMX): registers of up to 16 rows of 64 bytes, and products of whole ones.
//
// A product adds the rows of one tile times the columns of another to a third one. Rows hold kTileRows rows of 16 words;
// columns hold 16 steps of kLanes words, as `Sums` wants its columns; a word has kPacking numbers. It takes as many
// cycles as there are rows: a hundredth of a cycle a product of int8, twice that of bfloat16.
#pragma once

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {
#if defined(__AMX_TILE__)

constexpr int kTileSteps = 16;  // of a product

// While it lives, tiles 0 to 5 have kTileRows rows, for sums and rows of products, and 6 and 7 have kTileSteps, for
// columns. After it they are as before: other libraries of the process have their own shapes.
class Tiles {
  struct alignas(64) Shapes {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  Shapes before;

 public:
  Tiles() {
    _tile_storeconfig(&before);
    Shapes own{1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; ++tile) own.bytes[tile] = 64, own.rows[tile] = tile < 6 ? kTileRows : kTileSteps;
    _tile_loadconfig(&own);
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { _tile_loadconfig(&before); }
};

// int8 times int8, by tiles. Rows and columns are those of Int8Quads without its offset.
struct Int8Tiles : Int8Quads {
  static constexpr int kOffset = 0;
};

// The products of kG groups of rows, (groups, blocks, kTileRows, 16) words each, with columns (blocks, kTileSteps, kV, kLanes):
// sums (kG, kV, kTileRows) registers. `size`: words of a group.
template <int kG, int kV>
void multiply(int64_t blocks, const float* rows, int64_t size, const float* columns, Ints* sums) {
  static_assert(kG <= 2 && kV <= 2);
  asm volatile("" ::: "memory");  // else the compiler may write rows and columns after tiles are loaded
  _tile_zero(0);
  if constexpr (kV > 1) _tile_zero(1);
  if constexpr (kG > 1) _tile_zero(2);
  if constexpr (kG > 1 && kV > 1) _tile_zero(3);
  for (int64_t block = 0; block < blocks; ++block) {
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, columns, 64 * kV);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kV > 1) {
      _tile_loadd(7, columns + kLanes, 64 * kV);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kG > 1) {
      _tile_loadd(5, rows + size, 64);
      _tile_dpbssd(2, 5, 6);
      if constexpr (kV > 1) _tile_dpbssd(3, 5, 7);
    }
    rows += kTileRows * kLanes, columns += kTileSteps * kV * kLanes;
  }
  _tile_stored(0, sums, 64);
  if constexpr (kV > 1) _tile_stored(1, sums + kTileRows, 64);
  if constexpr (kG > 1) _tile_stored(2, sums + kV * kTileRows, 64);
  if constexpr (kG > 1 && kV > 1) _tile_stored(3, sums + 3 * kTileRows, 64);
}
#endif

}  // namespace
}  // namespace vqfast::VQFAST_ISA
