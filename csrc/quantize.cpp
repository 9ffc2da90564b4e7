// The training step once the codes are found: one pass over the vectors forward, one backward.
//
// Floor: read z, write quantized; read z and its gradient, write another: 5 x 4 bytes a number. Vectors whose channels
// aren't adjacent go through a tile in L1, so that codes and sums are always read along their rows.

#include "quantize.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kPositions = 32, kChannels = 64;
using Tile = float[kPositions][kChannels];

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t runs(const Assigned& v) { return (v.inner + kPositions - 1) / kPositions; }
int64_t rows_of(const Assigned& v) { return v.outer * v.inner; }
int64_t blocks(const Assigned& v) {
  return v.inner == 1 ? (rows_of(v) + kPositions - 1) / kPositions : v.outer * runs(v);
}

// Some positions side by side: where they begin, their number, and the distances of positions and of channels.
struct Block {
  int64_t at, count, first_index, position, channel;
};

Block locate(const Assigned& v, int64_t block) {
  if (v.inner == 1) {
    const int64_t row = block * kPositions;
    return {row * v.d, least(kPositions, rows_of(v) - row), row, v.d, 1};
  }
  const int64_t a = block / runs(v), p = block % runs(v) * kPositions;
  return {a * v.d * v.inner + p, least(kPositions, v.inner - p), a * v.inner + p, 1, v.inner};
}

void load(const float* from, const Block& b, int64_t first, int64_t count, Tile& to) {
  from += b.at + first * b.channel;
  if (b.channel == 1)
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; ++i) to[p][i] = from[p * b.position + i];
  else
    for (int64_t i = 0; i < count; ++i)
      for (int64_t p = 0; p < b.count; ++p) to[p][i] = from[i * b.channel + p];
}

void store(const Tile& from, const Block& b, int64_t first, int64_t count, float* to) {
  to += b.at + first * b.channel;
  if (b.channel == 1)
    for (int64_t p = 0; p < b.count; ++p)
      for (int64_t i = 0; i < count; ++i) to[p * b.position + i] = from[p][i];
  else
    for (int64_t i = 0; i < count; ++i)
      for (int64_t p = 0; p < b.count; ++p) to[i * b.channel + p] = from[p][i];
}

double forward(const Assigned& v, Span span, float* quantized, int64_t* counts, float* sums) {
  double error = 0;
  Tile z, out;
  for (int64_t block = span.begin; block < span.end; ++block) {
    const Block b = locate(v, block);
    float bad[kPositions] = {};  // NaN where a channel isn't finite
    for (int64_t first = 0; first < v.d && v.d > kChannels; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, z);
      for (int64_t p = 0; p < b.count; ++p)
        for (int64_t i = 0; i < count; ++i) bad[p] += z[p][i] * 0;
    }
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, z);
      for (int64_t p = 0; p < b.count; ++p) {
        const int64_t k = v.indices[b.first_index + p];
        const float* code = v.codes + k * v.d + first;
        float lanes[16] = {};
        for (int64_t i = 0; i < count; ++i) out[p][i] = code[i];
        int64_t i = 0;
        for (; i + 16 <= count; i += 16)
          for (int64_t l = 0; l < 16; ++l) {
            const float away = z[p][i + l] - code[i + l];
            lanes[l] += away * away;
          }
        for (; i < count; ++i) lanes[0] += (z[p][i] - code[i]) * (z[p][i] - code[i]);
        float here = 0;
        for (const float lane : lanes) here += lane;
        error += here;
        if (!(here - here == 0) && v.d <= kChannels)  // maybe not finite: look
          for (int64_t j = 0; j < count; ++j) bad[p] += z[p][j] * 0;
        if (bad[p] != bad[p]) {
          error += bad[p];
          for (int64_t j = 0; j < count; ++j) out[p][j] = bad[p];
        }
        if (sums)
          for (int64_t j = 0; j < count; ++j) sums[k * v.d + first + j] += z[p][j];
        if (counts && first == 0) ++counts[k];
      }
      store(out, b, first, count, quantized);
    }
  }
  return error;
}

void backward(
    const Assigned& v, Span span, const float* grad_quantized, float slope, float* grad_z, float* residuals) {
  Tile z, grad;
  for (int64_t block = span.begin; block < span.end; ++block) {
    const Block b = locate(v, block);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, z);
      load(grad_quantized, b, first, count, grad);
      for (int64_t p = 0; p < b.count; ++p) {
        const int64_t at = v.indices[b.first_index + p] * v.d + first;
        const float* code = v.codes + at;
        for (int64_t i = 0; i < count; ++i) z[p][i] -= code[i];
        for (int64_t i = 0; i < count; ++i) grad[p][i] += slope * z[p][i];
        if (residuals)
          for (int64_t i = 0; i < count; ++i) residuals[at + i] += z[p][i];
      }
      store(grad, b, first, count, grad_z);
    }
  }
}

}  // namespace

extern const QuantizeKernel quantize_kernel;
const QuantizeKernel quantize_kernel{blocks, forward, backward};

}  // namespace vqfast::VQFAST_ISA
