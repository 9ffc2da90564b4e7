// The CPU's tiles (AMX): registers of up to 16 rows of 64 bytes, and products of whole ones.
//
// A product adds the rows of one tile times the columns of another to a third one. Rows hold rows of 16 words; columns
// hold 16 steps of kLanes words, as `Sums` wants its columns; a word has two numbers of bfloat16. It takes as many cycles
// as there are rows, with its loads 16: that is 512 products of two numbers in a cycle, where registers take 32 of
// float32. Storing a tile takes as long. Vector instructions run beside both.
#pragma once

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Whether the CPU's tiles do an arithmetic.
template <class Arithmetic>
constexpr bool kTiled = false;
// Of how many numbers a value is the sum.
template <class Arithmetic>
constexpr int kPieceCount = 1;

constexpr int kTileSteps = 16;  // of a product
constexpr int kMostRows = 16;   // of a tile
// Channels of a block of pieces (Float32Pieces), and the words that they take.
constexpr int64_t kBlockChannels = 2 * kTileSteps, kBlockWords = 3 * kTileSteps;

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
    for (int tile = 0; tile < 8; ++tile) own.bytes[tile] = 64, own.rows[tile] = uint8_t(tile < 6 ? rows : kTileSteps);
    load(own);
  }
};

// Pairs of bfloat16 numbers by tiles. Products of the first numbers and of the second ones are summed apart.
struct Bf16Tiles : Bf16Pairs {};
template <>
constexpr bool kTiled<Bf16Tiles> = true;

// Adds the products of kG groups of rows with columns (blocks, kTileSteps, kV, kLanes) to tiles 0 to 3, of which group
// g has 2 g and 2 g + 1. In words: rows are `apart` from each other, groups `group`, and blocks of a row `step`.
// begin(tile) is called before the first product of each tile.
template <int kG, int kV, class Begin>
[[gnu::always_inline]] inline void add_products(
    int64_t blocks, const float* rows, int64_t apart, int64_t group, int64_t step, const float* columns, Begin begin) {
  static_assert(kG <= 2 && kV <= 2);
  const auto first = [&](bool is, auto tile) {
    if (is) begin(tile);
  };
  for (int64_t block = 0; block < blocks; ++block, rows += step, columns += kTileSteps * kV * kLanes) {
    _tile_loadd(4, rows, 4 * apart);
    _tile_loadd(6, columns, 64 * kV);
    first(!block, std::integral_constant<int, 0>{});
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kV > 1) {
      _tile_loadd(7, columns + kLanes, 64 * kV);
      first(!block, std::integral_constant<int, 1>{});
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kG > 1) {
      _tile_loadd(5, rows + group, 4 * apart);
      first(!block, std::integral_constant<int, 2>{});
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kV > 1) {
        first(!block, std::integral_constant<int, 3>{});
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
}
template <int kG, int kV>
[[gnu::always_inline]] inline void add_products(
    int64_t blocks, const float* rows, int64_t apart, int64_t group, int64_t step, const float* columns) {
  add_products<kG, kV>(blocks, rows, apart, group, step, columns, [](auto) {});
}

// Numbers of float32 as sums of three of bfloat16: the first has the 8 highest bits, the second 8 of the others, rounded,
// the third what is left, so that nothing is lost. Of the nine products of two such sums six are added: what is left
// out is as small as float32's own rounding. 32 channels are a block, which has the first pieces of all, then the second
// ones, then the third ones. A number that isn't finite has a NaN among its pieces, and makes one of each sum that
// it is in: so sums without a NaN are those of float32. Numbers below 1e-38 are zeros to tiles.
struct Float32Pieces : Bf16Pairs {
  static constexpr int kPieces = 3;
  static void write(Floats numbers, Bf16* to);
};
template <>
constexpr bool kTiled<Float32Pieces> = true;
template <>
constexpr int kPieceCount<Float32Pieces> = Float32Pieces::kPieces;
// Writes the pieces of a register of numbers: the first ones at `to`.
[[gnu::always_inline]] inline void split(Floats numbers, Bf16* to) {
  const Bits32 high = (Bits32)numbers & 0xffff0000u;
  const __m256i first = _mm512_cvtepi32_epi16((__m512i)(high >> 16));
  const Floats rest = numbers - (Floats)high;
  const __m256bh second = _mm512_cvtneps_pbh((__m512)rest);
  const Floats widened = (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)second), 16);
  const __m256bh third = _mm512_cvtneps_pbh((__m512)(rest - widened));
  memcpy(to, &first, sizeof first);
  memcpy(to + kBlockChannels, &second, sizeof second);
  memcpy(to + 2 * kBlockChannels, &third, sizeof third);
}
// The pieces of two registers of numbers: words of those of a, the lower halves, and of b.
[[gnu::always_inline]] inline void split(Floats a, Floats b, Bits32 (&pieces)[Float32Pieces::kPieces]) {
  const auto next = [](Floats& rest, uint32_t half) {
    const Bits32 high = ((Bits32)rest + half) & 0xffff0000u;
    rest -= (Floats)high;
    return high;
  };
  for (int piece = 0; piece < Float32Pieces::kPieces; ++piece) {
    const uint32_t half = piece == 1 ? 0x8000 : 0;  // which rounds
    const Bits32 low = next(a, half) >> 16;
    pieces[piece] = low | next(b, half);
  }
}
inline void Float32Pieces::write(Floats numbers, Bf16* to) { split(numbers, to); }

// The number that pieces add up to: an infinite one has NaNs behind its first piece.
inline float joined(float first, float second, float third) {
  const float rest = second + third;
  return rest == rest ? first + rest : first;
}
// Whether a NaN is among so many numbers, a multiple of kLanes.
inline bool has_nan(const float* numbers, int64_t count) {
  __mmask16 nan = 0;
  for (int64_t at = 0; at < count; at += kLanes) {
    const __m512 x = (__m512)load(numbers + at);
    nan |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  }
  return nan;
}

// As add_products, of pieces: those of a row are `of_piece` words apart, by default in blocks of kBlockWords words; columns
// are (blocks, kPieces, kTileSteps, kV, kLanes).
template <int kG, int kV>
[[gnu::always_inline]] inline void add_products_of_pieces(
    int64_t blocks, const float* rows, int64_t apart, int64_t group, const float* columns,
    int64_t of_piece = kTileSteps, int64_t step = kBlockWords) {
  static_assert(kG <= 2 && kV <= 2);
  constexpr int64_t kPiece = kTileSteps * kV * kLanes;
  const auto load_rows = [&](int piece) {
    _tile_loadd(4, rows + piece * of_piece, 4 * apart);
    if constexpr (kG > 1) _tile_loadd(5, rows + group + piece * of_piece, 4 * apart);
  };
  const auto load_columns = [&](int piece) {
    _tile_loadd(6, columns + piece * kPiece, 64 * kV);
    if constexpr (kV > 1) _tile_loadd(7, columns + piece * kPiece + kLanes, 64 * kV);
  };
  const auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kV > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kG > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kG > 1 && kV > 1) _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t block = 0; block < blocks; ++block, rows += step, columns += 3 * kPiece) {
    load_rows(0), load_columns(2), multiply();
    load_columns(1), multiply();
    load_columns(0), multiply();
    load_rows(1), multiply();
    load_columns(1), multiply();
    load_rows(2), load_columns(0), multiply();
  }
}

template <int kTile>
[[gnu::always_inline]] inline void store_tile(float* to, int64_t apart = kLanes) {  // distance of rows
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(4 * apart) : "memory");
}

// The products of two groups of kRows rows, (blocks, kRows, 16) words each and `group` words apart, with kV registers of
// columns, (blocks, kTileSteps, kV, kLanes). Their sums stay in tiles; those of the call before are stored where `sums`
// says, (2, kV, kRows, kLanes), each just before its tile is needed: so the CPU stores and multiplies at once. A sum is
// ready after 52 cycles, in which three others are begun.
template <int kRows, int kV>
[[gnu::always_inline]] inline void multiply_groups(
    int64_t blocks, const float* rows, int64_t group, const float* columns, float* sums) {
  asm volatile("" ::: "memory");  // else the compiler may write what is loaded after it is
  add_products<2, kV>(blocks, rows, kLanes, group, kRows * kLanes, columns, [&](auto tile) {
    constexpr int kTile = tile;
    store_tile<kTile>(sums + (kTile / 2 * kV + kTile % 2) * kRows * kLanes);
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  });
}
// Stores the sums of the last call.
template <int kRows, int kV>
[[gnu::always_inline]] inline void store_sums(float* sums) {
  store_tile<0>(sums);
  if constexpr (kV > 1) store_tile<1>(sums + kRows * kLanes);
  store_tile<2>(sums + kV * kRows * kLanes);
  if constexpr (kV > 1) store_tile<3>(sums + 3 * kRows * kLanes);
}
#endif

}  // namespace
}  // namespace vqfast::VQFAST_ISA
