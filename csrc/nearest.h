// What library.cpp hands to the kernel of nearest.cpp.
#pragma once

#include <cstdint>

namespace vqfast {

enum class Type { f32, f64, bf16, f16 };

// A dimension that rows run over.
struct Axis {
  int64_t size, x_stride, out_stride;
};

// One codebook. `prepare` fills what stands below `scale`; the arrays are the caller's.
struct Codebook {
  const void* codes;          // (K, D) contiguous: float64 where x is, else float32
  int64_t x, out;             // where its rows begin
  void* pivot;                // (D), like codes
  float *packed, *bias;       // (tiles, D, kTile) and (tiles, kTile)
  float* pairs;               // (tiles, (D+1)/2, kTile) pairs of bf16, where the problem is coarse
  double scale = 1;           // a power of two that brings the codes near 1
  float reach = 0;            // the longest packed code
  float residual = 0;         // the longest difference between a packed code and its bf16 rounding
  int64_t first_nan = -1;     // the first code with a NaN: every finite row's answer
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
  bool coarse;  // set by `plan`: whether a pass in bf16 comes first
  int64_t tiles, group, chunk, block;  // tiles of codes, tiles in a group and a chunk, rows in a block
};

struct Span {
  int64_t begin, end;
};

// What a thread found while packing its tiles.
struct Packed {
  float reach = 0, residual = 0;
  int64_t first_nan = -1;
};

struct Kernel {
  int tile;                                                  // codes side by side
  void (*plan)(Problem&, int64_t threads);
  void (*centre)(const Problem&, Codebook&);                 // pivot and scale
  Packed (*pack)(const Problem&, const Codebook&, Span tiles);
  int64_t (*scratch)(const Problem&);                        // bytes that a `search` needs
  // Blocks count through all codebooks. Returns whether the coarse pass, if there was one, has paid to the end.
  bool (*search)(const Problem&, Span blocks, void* scratch);
};

}  // namespace vqfast
