// What books.h and stages.h hand to the kernel of nearest.cpp.
#pragma once

#include <cstdint>

#include "shared/span.h"

namespace vqfast {

enum class Type { f32, f64, bf16, f16 };

// A dimension that rows run over.
struct Axis {
  int64_t size, x_stride, out_stride;
};

// One codebook. `centre` fills what stands from `pivot` on, `prepare` what `prepared` points to.
struct Codebook {
  const void* codes;    // (K, D) contiguous: float64 where x is, else float32
  const void* lengths;  // (K), like codes: what each code is divided by; or null
  int64_t x, out;       // where its rows begin
  void* pivot;          // (D), like codes; the caller's memory
  double scale;         // a power of two that brings the codes near 1
  void* prepared;       // the codes as a first pass of `per` takes them, or null: `search` makes them on its way
  int64_t per;
  const uint8_t* repeats;  // (K): codes that equal an earlier one; null until `find_repeats` is asked for them
  const uint8_t* (*find_repeats)(const Codebook&);
  void* owner;             // what finds them
};

// What a search took, for tests: it must not depend on what the numbers are.
struct Work {
  int64_t products;    // vectors times codes, in quarters: a float32 product counts 4, bf16 2, int8 1
  int64_t candidates;  // codes that the products left to be looked at
  int64_t distances;   // of vectors and codes, in float64
};

struct Problem {
  Type type;
  const void* x;
  int64_t *out;
  int64_t d, d_stride, k;
  int64_t rows, num_axes;     // rows of each codebook; they run over the axes, the last one fastest
  const Axis* axes;
  int64_t num_books;
  Codebook* books;
  int64_t beside;             // numbers that go with a row and are wanted in cache beside it
  Work* work;                 // what the search adds its work to, or null
  // set by `plan`
  int64_t per;                // numbers that a step of the first pass multiplies: 4 (int8), 2 (bf16) or 1 (float32)
  bool keep;                  // whether all scores are kept, else those of few groups are taken again
  int64_t groups, chunk;      // of codes, in all and in a chunk
  int64_t candidates;         // of a row, at the most
  int64_t tile;               // rows side by side
  int64_t block, blocks;      // rows in a block at the most, and blocks
  int64_t parts;              // of the codes, for a thread each
};
constexpr int64_t kMostParts = 64;
constexpr int64_t kSample = 16;  // codes that `centre` looks at

// The rows of a block: whole tiles, as many in one as in another.
static constexpr Span rows_of(const Problem& p, int64_t block) {
  const Span tiles = part_of((p.rows + p.tile - 1) / p.tile, p.blocks, block);
  const int64_t end = tiles.end * p.tile;
  return {tiles.begin * p.tile, end < p.rows ? end : p.rows};
}

struct Kernel {
  void (*plan)(Problem&, int64_t threads, bool share_codes);
  void (*centre)(const Problem&, Codebook&, void* room);     // pivot and scale; room (kSample, D), like codes
  int64_t (*prepared)(const Problem&);                       // bytes of a prepared codebook
  void (*prepare)(const Problem&, const Codebook&, Span groups, void* room);
  int64_t (*scratch)(const Problem&);                        // bytes that a `search` needs
  // Units count the parts of the codes for a block of rows, then blocks, then codebooks. Where there is one part,
  // the indices are written. Returns `per` as it would have been better.
  int64_t (*search)(const Problem&, Span units, void* scratch);
  // The indices of a block, counted through all codebooks, from the scratches of its parts side by side.
  void (*finish)(const Problem&, int64_t block, void* scratches);
};

}  // namespace vqfast
