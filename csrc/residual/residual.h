// What the host hands to the kernel of the training step, once the codes are found.
#pragma once

#include <cstdint>

#include "shared/precision.h"
#include "shared/span.h"

namespace vqfast {

// Vectors and the code of each at every stage. The first stage codes the vectors, each other one what is left of them:
// its residuals. Channel i of vector n = o * inner + p is z[(o * D + i) * inner + p]. "Wide" numbers are float64 where
// z is, else float32. All memory is the host's.
struct ResidualProblem {
  Precision precision;       // of z
  const void* z;             // (outer, D, inner) contiguous
  const void* const* codes;  // of each stage: (K, D) contiguous, wide
  const int64_t* indices;    // (outer, inner, stages)
  int64_t outer, d, inner, stages, k;
};

// Functions for some of the vectors; several threads may call them for different ones, with sums of their own.
struct ResidualKernel {
  // vectors: (count, D) wide, the vectors side by side.
  void (*gather)(const ResidualProblem&, Span, void* vectors);
  // Subtracts from those vectors their codes of a stage.
  void (*subtract)(const ResidualProblem&, Span, int64_t stage, void* vectors);
  // quantized, laid out as z, gets the sum of the stages' codes. errors (stages) grows by the sums of (residual - e)^2;
  // unless null, counts (stages, K) by the uses of each code and sums (stages, K, D), wide, by their residuals.
  void (*forward)(const ResidualProblem&, Span, void* quantized, double* errors, int64_t* counts, void* sums);
  // grad_z gets grad_quantized + the sum over stages of slopes[stage] * (residual - e), all laid out as z; slopes
  // (stages) wide. Unless null, differences (stages, K, D), wide, grows by residual - e at each code.
  void (*backward)(
      const ResidualProblem&, Span, const void* grad_quantized, const void* slopes, void* grad_z, void* differences);
};

}  // namespace vqfast
