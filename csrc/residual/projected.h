// What library_projected.cpp hands to the kernel of projected.cpp.
#pragma once

#include <cstdint>

#include "shared/span.h"

namespace vqfast {

// Vectors and the stages that code what is left of them, each between a map into the width of its codes and one back.
// Vector b * length + i has channel c at x[(b * channels + c) * length + i].
struct Projected {
  const float* x;
  int64_t batch, length, channels, d, stages;
  bool unit;                  // codes are searched for by unit vectors
  const float* const* maps;   // each stage's weight (d, channels) and bias into it, weight (channels, d) and bias back
  const float* const* codes;  // each stage's (k, d)
  const int64_t* indices;     // (batch, length, stages)
  // Unless null: what each stage was given, (batch, stages, d, length), and the sum of what came back, laid out as x.
  float *latents, *quantized;
};

// What a stage searches: vector t * width + i has channel c at x[t * step + c * width + i].
struct Latents {
  const float* x;
  int64_t step, width;
};

// All for vectors `here`, from a whole number of tiles on, in a thread's memory.
struct ProjectedKernel {
  int64_t (*scratch)(const Projected&, int64_t vectors);  // floats that many take
  void (*begin)(const Projected&, Span here, float* memory);
  Latents (*enter)(const Projected&, Span here, int64_t stage, float* memory);
  void (*leave)(const Projected&, Span here, int64_t stage, float* memory);
  void (*end)(const Projected&, Span here, float* memory);
  // to = codes (k, d) by their lengths, as torch's normalize has it
  void (*normalize)(const float* codes, int64_t k, int64_t d, float* to);
};

}  // namespace vqfast
