// What library_sampler.cpp hands to the kernel of sampler.cpp: a sampling program as plain data.
#pragma once

#include <cstdint>

namespace vqfast {

// The columns of the tensors `taps`, `terms` and `steps`; what they mean says vqfast/sampling/program.py.
struct Tap {
  int64_t dy, dx;
  int64_t early;  // whether it can be read when its row starts
};

struct Term {
  int64_t source, channels;
  int64_t weight;  // where in the weights, -1 for none
  int64_t first_tap, num_taps;
};
constexpr int64_t kCodes = -1, kCondition = -2;

struct Step {
  int64_t width, activation, phase, residual;
  int64_t bias, label_bias;    // where in the weights, -1 for none
  int64_t rows, left, right;   // of the grid that its cache keeps: rows, columns beside a block
  int64_t first_term, num_terms;
};
// In the order of vqfast/sampling/activations.py; from kGate on they multiply two halves of the sums.
enum Activation : int64_t { kNone, kRelu, kElu, kSilu, kGelu, kSigmoid, kTanh, kGate, kGlu, kProduct };
enum Phase : int64_t { kRow, kPosition, kCode };

// The codes' own cache.
struct CodeCache {
  int64_t rows, left, right;
};

enum class Precision { f32, f64, bf16 };  // bf16: weights only, the rest is float32

struct Sampling {
  Precision precision;
  const Step* steps;
  const Term* terms;
  const Tap* taps;
  int64_t num_steps;
  CodeCache cache;
  const void* weights;
  int64_t num_embeddings, batch, height, width;
  int64_t block;               // columns of a row that are kept at once
  int64_t condition_channels;
  const void* condition;       // (B, condition_channels, H, W) in the values' type
  const int64_t *labels, *known, *numbers;  // (B) or null, (B, H, W), (B)
  int64_t* codes;              // (B, H, W)
  uint64_t seed;
  double temperature;
  // Hides the logits that a draw may not choose; null where all may be.
  void (*restrict_to)(const Sampling&, double* logits, void* scratch);
  int64_t top_k;               // 0: all
  double top_p;                // 1: all
  int64_t threads, groups;     // the images are split over groups of threads; a group's split the channels
  char* memory;
};

struct SamplerKernel {
  int64_t (*bytes)(const Sampling&);               // of memory
  void (*begin)(const Sampling&);                  // lays it out
  void (*pack)(const Sampling&, int64_t step);     // packs a step's weights, clears its caches
  // One thread's share of the positions from `first` on; a code is -1 where its logits are NaN or have no finite maximum.
  void (*run)(const Sampling&, int64_t thread, int64_t first, int64_t count);
};

}  // namespace vqfast
