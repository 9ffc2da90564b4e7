// The CPU's tiles (AMX): registers of up to 16 rows of 64 bytes, and products of whole ones.
//
// A product adds the rows of one tile times the columns of another to a third one. Rows hold kTileRows rows of 16 words;
// columns hold 16 steps of kLanes words, as `Sums` wants its columns; a word has kPacking numbers. It takes as many
// cycles as there are rows: a hundredth of a cycle a product of int8, twice that of bfloat16.
#pragma once

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Whether the CPU's tiles do an arithmetic.
template <class Arithmetic>
constexpr bool kTiled = false;

constexpr int kTileSteps = 16;  // of a product

#if defined(__AMX_TILE__)

// While it lives, tiles 0 to 5 have as many rows as asked for, for sums and rows of products, and 6 and 7 have
// kTileSteps, for columns. After it they are as before: other libraries of the process have their own shapes.
class Tiles {
  struct alignas(64) Shapes {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  Shapes before;
  int64_t rows = 0;
  static void load(const Shapes& shapes) {
    asm volatile("" : : "r"(&shapes) : "memory");  // as the compiler knows of 8 bytes alone that are read
    _tile_loadconfig(&shapes);
  }

 public:
  explicit Tiles(int64_t rows = kTileRows) {
    _tile_storeconfig(&before);
    have(rows);
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { load(before); }
  // Sets the rows, which empties all tiles.
  void have(int64_t count) {
    if (count == rows) return;
    rows = count;
    Shapes own{1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; ++tile) own.bytes[tile] = 64, own.rows[tile] = tile < 6 ? rows : kTileSteps;
    load(own);
  }
};

// int8 times int8, by tiles. Rows and columns are those of Int8Quads without its offset.
struct Int8Tiles : Int8Quads {
  static constexpr int kOffset = 0;
};
template <>
constexpr bool kTiled<Int8Tiles> = true;

// Pairs of bfloat16 numbers by tiles; as Bf16Pairs where there are few rows. Products of the first numbers and of the
// second ones are summed apart.
struct Bf16Tiles : Bf16Pairs {};
template <>
constexpr bool kTiled<Bf16Tiles> = true;

// Adds the products of kG groups of rows with columns (blocks, kTileSteps, kV, kLanes) to tiles 0 to 3, of which group
// g has 2 g and 2 g + 1. In words: rows are `apart` from each other, groups `group`, and blocks of a row `step`.
template <class Arithmetic, int kG, int kV>
[[gnu::always_inline]] inline void add_products(
    int64_t blocks, const float* rows, int64_t apart, int64_t group, int64_t step, const float* columns) {
  static_assert(kG <= 2 && kV <= 2);
#define VQFAST_PRODUCT(sum, row, column)                                           \
  if constexpr (kIntegers<Arithmetic>) _tile_dpbssd(sum, row, column);             \
  else _tile_dpbf16ps(sum, row, column)
  for (; blocks > 0; --blocks, rows += step, columns += kTileSteps * kV * kLanes) {
    _tile_loadd(4, rows, 4 * apart);
    _tile_loadd(6, columns, 64 * kV);
    VQFAST_PRODUCT(0, 4, 6);
    if constexpr (kV > 1) {
      _tile_loadd(7, columns + kLanes, 64 * kV);
      VQFAST_PRODUCT(1, 4, 7);
    }
    if constexpr (kG > 1) {
      _tile_loadd(5, rows + group, 4 * apart);
      VQFAST_PRODUCT(2, 5, 6);
      if constexpr (kV > 1) VQFAST_PRODUCT(3, 5, 7);
    }
  }
#undef VQFAST_PRODUCT
}

// The products of kG groups of rows, (groups, blocks, kTileRows, 16) words each, with columns (blocks, kTileSteps, kV, kLanes):
// sums (kG, kV, kTileRows) registers. `size`: words of a group.
template <int kG, int kV>
void multiply(int64_t blocks, const float* rows, int64_t size, const float* columns, Ints* sums) {
  asm volatile("" ::: "memory");  // else the compiler may write rows and columns after tiles are loaded
  _tile_zero(0);
  if constexpr (kV > 1) _tile_zero(1);
  if constexpr (kG > 1) _tile_zero(2);
  if constexpr (kG > 1 && kV > 1) _tile_zero(3);
  add_products<Int8Tiles, kG, kV>(blocks, rows, kLanes, size, kTileRows * kLanes, columns);
  _tile_stored(0, sums, 64);
  if constexpr (kV > 1) _tile_stored(1, sums + kTileRows, 64);
  if constexpr (kG > 1) _tile_stored(2, sums + kV * kTileRows, 64);
  if constexpr (kG > 1 && kV > 1) _tile_stored(3, sums + 3 * kTileRows, 64);
}
#endif

}  // namespace
}  // namespace vqfast::VQFAST_ISA
