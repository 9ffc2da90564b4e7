// What library.cpp hands to the kernel of quantize.cpp.
#pragma once

#include <cstdint>

#include "nearest.h"

namespace vqfast {

// Vectors in float32 and their codes. Position p of vector block a has channel i at z[(a * d + i) * inner + p].
struct Assigned {
  const float* z;
  const float* codes;      // (K, d)
  const int64_t* indices;  // (outer, inner)
  int64_t outer, d, inner, k;
};

struct QuantizeKernel {
  // Blocks of positions that a thread takes at once.
  int64_t (*blocks)(const Assigned&);
  // quantized, laid out as z; returns the sum of (z - e)^2. Unless null, counts (K) and sums (K, d) of the vectors of
  // each code are added to.
  double (*forward)(const Assigned&, Span blocks, float* quantized, int64_t* counts, float* sums);
  // grad_z = grad_quantized + slope (z - e), all laid out as z. Unless null, residuals (K, d) gets the sums of z - e.
  void (*backward)(const Assigned&, Span blocks, const float* grad_quantized, float slope, float* grad_z, float* residuals);
};

}  // namespace vqfast
