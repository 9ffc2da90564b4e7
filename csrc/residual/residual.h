// What library_quantize.cpp hands to the kernel of quantize.cpp.
#pragma once

#include <cstdint>

#include "nearest/nearest.h"

namespace vqfast {

// Vectors and the codes of each stage: the first codes the vectors, each other one what is left over. Vector
// a * inner + p has channel i at z[(a * d + i) * inner + p]. What isn't of z's type is in float64 where z is, else in
// float32: the codes, and below rows, sums, slopes and away.
struct Assigned {
  Type type;
  const void* z;
  const void* const* codes;  // each stage's, (k, d)
  const int64_t* indices;    // (outer, inner, stages)
  int64_t outer, d, inner, stages, k;
};

struct QuantizeKernel {
  // Vectors as rows (d) side by side.
  void (*gather)(const Assigned&, Span vectors, void* rows);
  // rows -= their codes of the stage.
  void (*subtract)(const Assigned&, Span vectors, int64_t stage, void* rows);
  // quantized, laid out as z; adds the sums of (residual - e)^2 to errors (stages) and, unless null, to counts
  // (stages, k) and sums (stages, k, d) of the residuals of each code.
  void (*forward)(const Assigned&, Span vectors, void* quantized, double* errors, int64_t* counts, void* sums);
  // grad_z = grad_quantized + the sum of slopes[stage] (residual - e), all laid out as z. Unless null, away
  // (stages, k, d) gets the sums of residual - e.
  void (*backward)(
      const Assigned&, Span vectors, const void* grad_quantized, const void* slopes, void* grad_z, void* away);
};

}  // namespace vqfast
