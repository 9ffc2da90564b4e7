// The training step once the codes are found: one pass over the vectors forward, one backward, whatever the number of
// stages.
//
// Floor: read z, write quantized; read z and its gradient, write another: 5 x 4 bytes a number. Vectors whose channels
// aren't adjacent go through a tile in L1, so that codes and sums are always read along their rows. Each stage adds the
// read of a code, 4 bytes a number, and of a sum that is written back, 8 bytes, each way: from the last cache, which at
// many stages is what counts.

#include "quantize.h"

#include <cstring>

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int64_t kPositions = 32, kChannels = 64;
using Tile = float[kPositions][kChannels];

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Some vectors side by side: where they begin, their number, and the distances of vectors and of channels.
struct Block {
  int64_t at, count, first, position, channel;
};

// The block from vector n on.
Block locate(const Assigned& v, int64_t n, int64_t end) {
  if (v.inner == 1) return {n * v.d, least(kPositions, end - n), n, v.d, 1};
  const int64_t a = n / v.inner, p = n % v.inner;
  return {a * v.d * v.inner + p, least(kPositions, least(v.inner - p, end - n)), n, 1, v.inner};
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

const float* code_of(const Assigned& v, int64_t n, int64_t stage) {
  return v.codes + stage * v.book + v.indices[n * v.stages + stage] * v.d;
}

// Which of all stages' codes a vector's is.
int64_t slot(const Assigned& v, int64_t n, int64_t stage) { return stage * v.k + v.indices[n * v.stages + stage]; }

void gather(const Assigned& v, Span span, float* rows) {
  Tile tile;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, tile);
      for (int64_t p = 0; p < b.count; ++p) memcpy(rows + p * v.d + first, tile[p], sizeof(float) * count);
    }
    rows += b.count * v.d;
    n += b.count;
  }
}

void subtract(const Assigned& v, Span span, int64_t stage, float* rows) {
  for (int64_t n = span.begin; n < span.end; ++n, rows += v.d) {
    const float* code = code_of(v, n, stage);
    for (int64_t i = 0; i < v.d; ++i) rows[i] -= code[i];
  }
}

// Takes the code from the residual and returns the sum of what is left, squared.
float step(const float* code, int64_t count, float* residual) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int64_t l = 0; l < 16; ++l) {
      const float away = residual[i + l] - code[i + l];
      lanes[l] += away * away;
      residual[i + l] = away;
    }
  for (; i < count; ++i) {
    residual[i] -= code[i];
    lanes[0] += residual[i] * residual[i];
  }
  float error = 0;
  for (const float lane : lanes) error += lane;
  return error;
}

// From the first stage on that was given a vector which isn't finite, everything of that vector is NaN.
void spoil(const Assigned& v, const Block& b, int64_t p, float* quantized, double* errors, float* sums) {
  const int64_t n = b.first + p;
  int64_t bad = v.stages;
  for (int64_t i = 0; i < v.d; ++i) {
    float residual = v.z[b.at + p * b.position + i * b.channel];
    for (int64_t stage = 0; stage < bad; ++stage) {
      if (!__builtin_isfinite(residual)) bad = stage;
      residual -= code_of(v, n, stage)[i];
    }
  }
  if (bad == v.stages) return;
  for (int64_t i = 0; i < v.d; ++i) quantized[b.at + p * b.position + i * b.channel] = __builtin_nanf("");
  for (int64_t stage = bad; stage < v.stages; ++stage) {
    errors[stage] = __builtin_nan("");
    for (int64_t i = 0; sums && stage > bad && i < v.d; ++i) sums[slot(v, n, stage) * v.d + i] = __builtin_nanf("");
  }
}

void forward(const Assigned& v, Span span, float* quantized, double* errors, int64_t* counts, float* sums) {
  Tile residual, out;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    float bad[kPositions] = {};  // NaN where an error isn't finite
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, residual);
      for (int64_t p = 0; p < b.count; ++p)
        for (int64_t stage = 0; stage < v.stages; ++stage) {
          const float* code = code_of(v, n + p, stage) + first;
          const int64_t at = slot(v, n + p, stage);
          if (sums)
            for (int64_t i = 0; i < count; ++i) sums[at * v.d + first + i] += residual[p][i];
          if (counts && first == 0) ++counts[at];
          for (int64_t i = 0; i < count; ++i) out[p][i] = stage ? out[p][i] + code[i] : code[i];
          const float error = step(code, count, residual[p]);
          errors[stage] += error;
          bad[p] += error * 0;
        }
      store(out, b, first, count, quantized);
    }
    for (int64_t p = 0; p < b.count; ++p)
      if (bad[p] != bad[p]) spoil(v, b, p, quantized, errors, sums);
    n += b.count;
  }
}

void backward(
    const Assigned& v, Span span, const float* grad_quantized, const float* slopes, float* grad_z, float* away) {
  Tile residual, grad;
  for (int64_t n = span.begin; n < span.end;) {
    const Block b = locate(v, n, span.end);
    for (int64_t first = 0; first < v.d; first += kChannels) {
      const int64_t count = least(kChannels, v.d - first);
      load(v.z, b, first, count, residual);
      load(grad_quantized, b, first, count, grad);
      for (int64_t p = 0; p < b.count; ++p)
        for (int64_t stage = 0; stage < v.stages; ++stage) {
          const float *code = code_of(v, n + p, stage) + first, slope = slopes[stage];
          const int64_t at = slot(v, n + p, stage) * v.d + first;
          const auto take = [&](int64_t width) {
            for (int64_t i = 0; i < width; ++i) residual[p][i] -= code[i];
            for (int64_t i = 0; i < width; ++i) grad[p][i] += slope * residual[p][i];
            if (away)
              for (int64_t i = 0; i < width; ++i) away[at + i] += residual[p][i];
          };
          count == kChannels ? take(kChannels) : take(count);
        }
      store(grad, b, first, count, grad_z);
    }
    n += b.count;
  }
}

}  // namespace

extern const QuantizeKernel quantize_kernel;
const QuantizeKernel quantize_kernel{gather, subtract, forward, backward};

}  // namespace vqfast::VQFAST_ISA
