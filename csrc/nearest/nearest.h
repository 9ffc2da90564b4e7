// What the host hands to the kernel that finds the nearest codes.
#pragma once

#include <cstdint>

#include "shared/contract.h"
#include "shared/precision.h"
#include "shared/span.h"

namespace vqfast {

// A dimension of the vectors' tensor: its size, and the distances of neighbours in x and in `out`, in numbers.
struct Axis {
  int64_t size, x_stride, out_stride;
};

// One codebook and what is derived from it. All memory is the host's. Codes are float64 where x is, else float32.
struct Codebook {
  const void* codes;      // (K, D) contiguous
  const void* lengths;    // (K), what each code is divided by, in the type of the codes; or null
  int64_t x, out;         // where its vectors and their indices begin, in numbers from the problem's x and out
  void* pivot;            // (D), in the type of the codes; `centre` fills it
  double scale;           // a power of two that brings the codes' distances from the pivot near 1; `centre` sets it
  void* prepared;         // `prepared_bytes` that `prepare` fills, in the precision `packing`; or null, and `search`
  int64_t packing;        // rounds codes on its way
  const uint8_t* repeats;  // (K), 1 for codes that equal an earlier one; null until `find_repeats` was asked
  const uint8_t* (*find_repeats)(const Codebook&);  // any thread may call it; sets `repeats` and returns it
  void* owner;             // for find_repeats
};

// Which codes are nearest to which vectors. A packing names the precision of products: the numbers in 32 bits, that is
// 4 for int8, 2 for bfloat16, 1 for float32.
struct NearestProblem {
  Precision precision;  // of x
  const void* x;        // the vectors, of any strides
  int64_t* out;         // their indices
  int64_t d, d_stride;  // D, and the distance of a vector's numbers in x
  int64_t k;            // codes of a codebook
  int64_t vectors;      // of each codebook; they run over the axes, the last one fastest
  int64_t num_axes;
  const Axis* axes;
  int64_t num_books;
  Codebook* books;         // (num_books)
  bool divided;         // whether codes have lengths
  int64_t extra_channels;  // numbers of a vector that the caller needs in cache beside x
  SearchCounts* counts;    // what the search adds its counts to, or null

  // Set by `plan`.
  bool direct;                    // whether few vectors are searched without pivot, scale and packing (direct.h)
  int64_t packing;                // precision of the first pass
  bool tallied;                   // whether the first pass counts scores as integers (tally.h)
  bool keep_scores;               // whether all scores of a chunk are kept; else those of few groups are computed again
  int64_t groups, chunk;          // groups of kGroupRows codes, in all and in a chunk
  int64_t max_candidates;         // of a vector
  int64_t tile;                   // vectors of a tile
  int64_t blocks, max_block;      // blocks of the vectors of a codebook, and vectors of the largest
  int64_t parts;                  // parts of the codes, each searched by a thread of its own
};
constexpr int64_t kMaxParts = 64;
constexpr int64_t kSample = 16;  // codes that `centre` looks at

// The vectors of a block: whole tiles, of which blocks have equal numbers, give or take one.
static constexpr Span vectors_in(const NearestProblem& p, int64_t block) {
  const Span tiles = part_of((p.vectors + p.tile - 1) / p.tile, p.blocks, block);
  const int64_t end = tiles.end * p.tile;
  return {tiles.begin * p.tile, end < p.vectors ? end : p.vectors};
}

struct NearestKernel {
  // Fills the lower half of a problem. With `share_codes`, threads may share the codes of few vectors.
  void (*plan)(NearestProblem&, int64_t threads, bool share_codes);
  // Sets a codebook's pivot and scale, which a direct search doesn't need; its scale is 1. room: (kSample, D) in the
  // type of the codes, where there are lengths.
  void (*centre)(const NearestProblem&, Codebook&, void* room);
  int64_t (*prepared_bytes)(const NearestProblem&);  // of one codebook
  // Prepares groups of a codebook. room: (D) in the type of the codes, where there are lengths.
  void (*prepare)(const NearestProblem&, const Codebook&, Span groups, void* room);
  int64_t (*scratch_bytes)(const NearestProblem&);  // that a thread's `search` needs
  // Searches units, which count the parts of a block's codes, then blocks, then codebooks. Where there is one part, the
  // indices are written; where there are several, each thread searches one unit and `finish` follows. Returns the
  // packing with which the next block should start.
  int64_t (*search)(const NearestProblem&, Span units, void* scratch);
  // Writes the indices of a block, counted through all codebooks, from the scratches of its parts, side by side.
  void (*finish)(const NearestProblem&, int64_t block, void* scratches);
};

}  // namespace vqfast
