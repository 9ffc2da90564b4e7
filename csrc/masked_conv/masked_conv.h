// What the host hands to the kernel of masked convolution.
#pragma once

#include <cstdint>

#include "shared/precision.h"
#include "shared/span.h"

namespace vqfast {

// What a kernel does with the sums: an activation, or the gradient of the gate.
enum class Epilogue { none, relu, gate, gate_gradient };

// A tensor (B, C, H, W): its memory, or null where there is none, and the distances of neighbours in numbers. A
// distance of 0 repeats a number. Neighbouring channels (channels last), or else columns, are adjacent.
struct Grid {
  void* at;
  int64_t sample, channel, row, column;
};

// One matrix product over the input channels: numbers made of x, times a matrix made of the taps', added to one sum. It
// is a tap, or where neighbours are computed together one Winograd product (winograd.h).
struct ConvProduct {
  int64_t view_set, view;  // the numbers: a view of a set; of no set x itself
  int64_t dy, dx;          // where they are, relative to the position
  int64_t matrix;          // the number of the matrix
};

// The matrix sum over k of factors[k] * (the weight's matrix at taps[k]). Taps are numbered in the weight's window.
struct TapMatrix {
  int64_t taps[3];
  float factors[3];
};

// The views of one kind (winograd.h) that are made of x from column dx on, and the rows [top, bottom] in which products
// read them, relative to the position.
struct ViewSet {
  int64_t kind, dx, top, bottom;
};

// Sums that each cluster of four positions is made of, see winograd.h.
constexpr int64_t kSums = 12;

// sums = bias + extra + the sum over taps of x at (dy, dx) times the tap's matrix; result = epilogue(sums) + residual.
// All numbers have one precision and all memory is the host's; what may be missing is null.
struct MaskedConvProblem {
  Precision precision;
  Epilogue epilogue;
  int64_t batch, height, width;
  int64_t in_channels, out_channels;  // of x, and of the sums
  int64_t num_taps;
  const int64_t *dy, *dx;             // (num_taps), where a tap reads relative to the position
  const int64_t* tap;                 // (num_taps), the tap's number in the weight's window (kh, kw)
  Grid x, extra, residual, result;
  Grid kept;                          // receives the sums; or none
  const int64_t* codes;               // (B, H, W) in place of x, which then is one-hot vectors of them
  void* weight;                       // (out_channels, in_channels, kh, kw), windows contiguous
  int64_t weight_out_stride, weight_in_stride;
  void* bias;                         // (out_channels), or null

  // Room that `plan` fills: 4, 2 and 1 for each tap; or null, and it plans no products.
  ConvProduct* products;              // sum by sum
  TapMatrix* matrices;
  ViewSet* view_sets;

  // Whether the CPU's tiles may multiply float32, and, once planned, do. They can't multiply large numbers.
  bool tiled;
  bool of_weight;  // whether the gradient of the weight is computed

  // Set by `plan`.
  int64_t block_rows, block_columns;  // of the largest block of positions
  int64_t cluster;                    // neighbours that are computed together: 4, or 1
  int64_t first_product[kSums + 1];   // where each sum's products begin, and their end
  int64_t num_matrices, num_view_sets;
};

// Parts of the work are counted: tiles of output channels, blocks of positions, and parts of the weight.
struct MaskedConvKernel {
  void (*plan)(MaskedConvProblem&, int64_t threads);
  int64_t (*tiles)(const MaskedConvProblem&);
  int64_t (*blocks)(const MaskedConvProblem&);
  int64_t (*packed_bytes)(const MaskedConvProblem&);   // of the packed weight
  int64_t (*scratch_bytes)(const MaskedConvProblem&);  // that a thread needs
  // This and the next two return false if numbers are too large for the CPU's tiles: then nothing is right.
  bool (*pack)(const MaskedConvProblem&, Span tiles, void* packed);
  // With codes, the result is channels last and nothing follows the sums.
  bool (*forward)(const MaskedConvProblem&, Span blocks, const void* packed, void* scratch);
  // The gradient of the weight and the bias; `result` is the gradient of the sums. `weight_gradient` writes what some
  // blocks of positions (a share) add to some parts to `packed`, of packed_bytes; then `write_gradient` adds up all
  // shares, whose `packed` are side by side, and writes to `weight` and `bias`.
  int64_t (*weight_parts)(const MaskedConvProblem&);
  bool (*weight_gradient)(const MaskedConvProblem&, Span blocks, Span parts, void* packed, void* scratch);
  void (*write_gradient)(const MaskedConvProblem&, Span parts, int64_t shares, const void* packed);
  // result = gate(x + extra), or with the gradient of that in `residual`, the gradient of x. out_channels are x's.
  void (*gate)(const MaskedConvProblem&, Span blocks);
};

}  // namespace vqfast
