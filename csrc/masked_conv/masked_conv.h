// What library_masked_conv.cpp hands to the kernel of masked_conv.cpp.
#pragma once

#include <cstdint>

#include "nearest/nearest.h"

namespace vqfast {

enum class Epilogue { none, relu, gate, gate_gradient };

// A tensor (B, C, H, W), or none: where it is, and the distances of neighbours in numbers. A distance of 0 repeats.
// Either channels or columns are adjacent.
struct Grid {
  void* at;
  int64_t sample, channel, row, column;
};

// What stands for some taps side by side: numbers read in place of x, times a matrix made of the taps', are part of one
// of the sums that outputs are made of. See blocks.h.
struct Product {
  int64_t look, view;  // -1: x itself
  int64_t dy, dx, matrix;
};
struct Matrix {
  int64_t taps[3];
  float factors[3];
};
struct Look {
  int64_t kind, dx, top, bottom;  // what it makes of x from column dx on, and the rows that products need it of
};

// sums = bias + sum over taps of x shifted by (dy, dx) times the tap's matrix, + extra;
// out = activation(sums) + residual.
struct MaskedConv {
  Type type;
  Epilogue epilogue;
  int64_t batch, height, width, in, out;  // in and out: channels of x and of the sums
  int64_t taps;
  const int64_t *dy, *dx, *tap;           // tap: where its number is in each of the weight's kernels
  Grid x, extra, residual, result, kept;  // kept: the sums, or none
  const int64_t* codes;                   // (B, H, W) in place of x, which is one-hot vectors of them; or none
  void* weight;
  int64_t weight_out, weight_in;          // distances in the weight
  void* bias;                             // (out), or none
  // Room for `plan` to fill, or none: 4, 2 and 1 a tap.
  Product* products;
  Matrix* matrices;
  Look* looks;
  // Set by `plan`: positions of a block; positions computed together; where each sum's products begin.
  int64_t rows, columns, together;
  int64_t first[13], num_matrices, num_looks;
};

struct MaskedConvKernel {
  void (*plan)(MaskedConv&, int64_t threads);
  int64_t (*tiles)(const MaskedConv&);    // of the sums' channels
  int64_t (*blocks)(const MaskedConv&);   // of positions
  int64_t (*packed)(const MaskedConv&);   // bytes of the packed weight
  int64_t (*scratch)(const MaskedConv&);  // bytes that a thread needs
  void (*pack)(const MaskedConv&, Span tiles, void* packed);
  void (*forward)(const MaskedConv&, Span blocks, const void* packed, void* scratch);
  // With codes: the result is channels last, nothing follows the sums.
  // With the sums' gradient as `result`: what blocks of positions add to the weight and the bias, for some parts of
  // them, in room like `packed` above; then the gradients, from several such rooms side by side.
  int64_t (*weight_parts)(const MaskedConv&);
  void (*weight_gradient)(const MaskedConv&, Span blocks, Span parts, void* packed, void* scratch);
  void (*put_gradient)(const MaskedConv&, Span parts, int64_t shares, const void* packed);
  // result = gate(x + extra); or, of the gradient of that in `residual`, the gradient of x. `out` counts x's channels.
  void (*gate)(const MaskedConv&, Span blocks);
};

}  // namespace vqfast
