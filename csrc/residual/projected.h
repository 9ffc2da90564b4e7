// What the host hands to the kernel of residual stages between projections.
#pragma once

#include <cstdint>

#include "shared/span.h"

namespace vqfast {

// Vectors, and stages that each map what is left of them to the width of their codes, code that, and map the codes
// back.
// All numbers are float32, all memory is the host's. Channel c of vector b * length + i is x[(b * channels + c) *
// length + i].
struct ProjectedProblem {
  const float* x;             // (batch, channels, length)
  int64_t batch, length, channels, d, stages;
  bool unit;                  // whether codes are searched for by the direction of latents: both are unit vectors
  const float* const* maps;   // of each stage: weight (D, channels), bias (D), and back weight (channels, D), bias
  const float* const* codes;  // of each stage: (K, D)
  const int64_t* indices;     // (batch, length, stages), which the search writes between `enter` and `leave`
  float* latents;             // (batch, stages, D, length), what each stage codes; or null
  float* quantized;           // (batch, channels, length), the sum of what is mapped back; null where latents is
};

// The vectors that a stage searches for: channel c of vector t * width + i is x[t * step + c * width + i].
struct Latents {
  const float* x;
  int64_t step, width;
};

// Functions for a block of vectors `here`, whose first is a multiple of a tile's columns, in a thread's memory. A
// thread calls begin, then enter and leave for each stage in order, then end.
struct ProjectedKernel {
  int64_t (*scratch_size)(const ProjectedProblem&, int64_t vectors);  // floats of a thread's memory
  void (*begin)(const ProjectedProblem&, Span here, float* memory);
  Latents (*enter)(const ProjectedProblem&, Span here, int64_t stage, float* memory);
  void (*leave)(const ProjectedProblem&, Span here, int64_t stage, float* memory);
  void (*end)(const ProjectedProblem&, Span here, float* memory);
  // to (K, D): the codes divided by their lengths, as torch.nn.functional.normalize divides.
  void (*normalize)(const float* codes, int64_t k, int64_t d, float* to);
};

}  // namespace vqfast
