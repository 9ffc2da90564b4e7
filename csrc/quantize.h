// What library.cpp hands to the kernel of quantize.cpp.
#pragma once

#include <cstdint>

#include "nearest.h"

namespace vqfast {

// Vectors in float32 and the codes of each stage: the first codes the vectors, each other one what is left over.
// Vector a * inner + p has channel i at z[(a * d + i) * inner + p].
struct Assigned {
  const float* z;
  const float* codes;      // (stages, k, d), each stage's `book` after that of the one before, or 0: one for all
  const int64_t* indices;  // (outer, inner, stages)
  int64_t outer, d, inner, stages, k, book;
};

struct QuantizeKernel {
  // Vectors as rows (d) side by side.
  void (*gather)(const Assigned&, Span vectors, float* rows);
  // rows -= their codes of the stage.
  void (*subtract)(const Assigned&, Span vectors, int64_t stage, float* rows);
  // quantized, laid out as z; adds the sums of (residual - e)^2 to errors (stages) and, unless null, to counts
  // (stages, k) and sums (stages, k, d) of the residuals of each code.
  void (*forward)(const Assigned&, Span vectors, float* quantized, double* errors, int64_t* counts, float* sums);
  // grad_z = grad_quantized + the sum of slopes[stage] (residual - e), all laid out as z. Unless null, away
  // (stages, k, d) gets the sums of residual - e.
  void (*backward)(
      const Assigned&, Span vectors, const float* grad_quantized, const float* slopes, float* grad_z, float* away);
};

}  // namespace vqfast
