// What the host hands to the sampler's kernel: a sampling program as plain data (vqfast/sampling/program.py says what
// it means), and one call's inputs and outputs.
#pragma once

#include <cstdint>

#include "shared/contract.h"
#include "shared/precision.h"
#include "shared/span.h"

namespace vqfast {

constexpr int64_t kCodes = int64_t(Source::codes), kCondition = int64_t(Source::condition);
inline bool is_codes(int64_t source) { return source <= kCodes; }

// What a cache keeps: so many of the last rows of the grid, and of each a block and columns left and right of it. Only
// rows and columns that are multiples of the stride count.
struct CacheShape {
  int64_t rows, left, right, stride = 1;
};

// A matrix or a bias as the caller has it: its numbers, and the strides of its last three dimensions.
struct Weight {
  const void* numbers;
  int64_t strides[3];
};

// All memory is the host's. B is `batch`, the number of samples; H and W are the grid's height and width. Values are
// float64 where weights are, else float32.
struct SamplerProblem : SamplerSizes {
  Precision precision;     // of weights: f32, f64 or bf16
  const Step* steps;       // (num_steps)
  const Term* terms;
  const Tap* taps;
  const Attention* attentions;
  int64_t num_steps;
  const Weight* weights;   // for `pack` alone
  const void* condition;   // (B, condition_channels, H, condition_width), as values
  const int64_t* labels;   // (B), or null
  const int64_t* known;    // (B, H, W, num_codes), codes that are given, -1 where they are to be drawn
  const int64_t* numbers;  // (B), the number of each sample, which its noise depends on
  int64_t* codes;          // (B, H, W, num_codes), the result
  double temperature;      // 0: the most probable code
  double top_p;            // 1: all codes
  // Sets logits (choices) that a draw may not choose to -inf. scratch: as many numbers of 8 bytes. Null where all may
  // be chosen.
  void (*restrict_to)(const SamplerProblem&, double* logits, void* scratch);
  char* memory;            // `bytes`, kept from `begin` to the last `run`

  // How many rows are drawn side by side at most, and when: at moment m row y is at column m - y * distance.
  int64_t rows_at_once() const { return (width + distance - 1) / distance; }
  Span rows_at(int64_t moment) const {
    const int64_t first = moment < width ? 0 : (moment - width) / distance + 1, last = moment / distance;
    return {first, (last < height - 1 ? last : height - 1) + 1};
  }
  int64_t choices() const { return num_mixtures > 0 ? num_mixtures : num_embeddings; }  // of a draw
  CacheShape code_cache() const { return {code_rows, code_left, code_right}; }
  int64_t condition_width() const { return (width + condition_stride - 1) / condition_stride; }
  // Entries of the map, at most, that so many columns of a block or a chunk are in.
  int64_t entries_of(int64_t columns) const { return (columns - 1 + condition_stride - 1) / condition_stride + 1; }
  // Where column x is among the entries of the map of its block, and among the early sums of its chunk, which are as
  // far apart.
  int64_t map_column(int64_t x) const { return x / condition_stride - x / block * block / condition_stride; }
  int64_t early_column(int64_t x) const { return x / condition_stride - x / chunk * chunk / condition_stride; }
  int64_t stride_of(int64_t source) const { return source < 0 ? 1 : steps[source].stride; }
};

struct SamplerKernel {
  int64_t (*bytes)(const SamplerProblem&);              // of memory
  void (*begin)(const SamplerProblem&);                 // lays it out
  void (*pack)(const SamplerProblem&, int64_t step);    // packs a step's weights, clears its caches; once for each step
  // One thread's share of `count` moments from `first` on. All threads must run at once: they wait for each other. A
  // code is -1 where its logits are NaN or have no finite maximum.
  void (*run)(const SamplerProblem&, int64_t thread, int64_t first, int64_t count);
};

}  // namespace vqfast
