// Residual stages between projections: a tile of vectors, side by side, goes through all stages.
//
// Floor: 2 x channels x D float32 multiplications for each vector and stage, half of them each way. The tile's rows are
// the weights as they are in memory, its columns the vectors. Residuals stay in L2 from the first stage to the last.

#include "residual/projected.h"

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// What torch.nn.functional.normalize divides by.
float divisor(float length) { return length < 1e-12f ? 1e-12f : length; }

// f.operator()<rows>(first) for all of `count` rows of a matrix, in runs of as many as the registers hold.
template <class F>
void for_rows(int64_t count, F f) {
  int64_t r = 0;
  for (; r + kTileRows <= count; r += kTileRows) f.template operator()<kTileRows>(r);
  if constexpr (kTileRows > 8)
    for (; r + 8 <= count; r += 8) f.template operator()<8>(r);
  for (; r < count; ++r) f.template operator()<1>(r);
}

// Adds bias[i] to all sums of row i.
template <int kR>
[[gnu::always_inline]] inline void add_bias(Sums<Float32, kR>& sums, const float* bias) {
#pragma GCC unroll 16
  for (int i = 0; i < kR; ++i)
    for (int w = 0; w < kTileRegisters; ++w) sums.of[i][w] += bias[i];
}

// A thread's memory for a block: each of a tile's matrices for all its tiles, one after another.
struct Memory {
  int64_t kept;     // stages whose latents and codes are kept: all, or one
  float* residual;  // (tiles, channels, kTileColumns)
  float* latents;   // (tiles, kept, D, kTileColumns)
  float* codes;     // (tiles, kept, D, kTileColumns)
  float* searched;  // (tiles, D, kTileColumns), latents divided by their lengths, with `unit`
};

int64_t kept(const ProjectedProblem& v) { return v.latents ? v.stages : 1; }

int64_t scratch_size(const ProjectedProblem& v, int64_t vectors) {
  return ceil_div(vectors, kTileColumns) * kTileColumns * (v.channels + v.d * (2 * kept(v) + v.unit));
}

Memory carve(const ProjectedProblem& v, Span here, float* memory) {
  const int64_t vectors = ceil_div(count_of(here), kTileColumns) * kTileColumns;
  float* latents = memory + vectors * v.channels;
  float* codes = latents + vectors * v.d * kept(v);
  return {kept(v), memory, latents, codes, codes + vectors * v.d * kept(v)};
}

// f(first vector, number of vectors, number of the tile) for each tile of a block.
template <class F>
void for_tiles(Span here, F f) {
  for (int64_t n = here.begin, tile = 0; n < here.end; n += kTileColumns, ++tile)
    f(n, min(kTileColumns, here.end - n), tile);
}

// f(pointer in tensor, pointer in tile, count) for all runs of numbers that are adjacent in both. tensor: (batch,
// channels, length), of which some channels are taken; tile: (taken, kTileColumns), the `count` vectors from `first`
// on.
template <class T, class F>
void for_runs(
    const ProjectedProblem& v, int64_t first, int64_t count, T* tensor, int64_t channels, int64_t taken, float* tile,
    F f) {
  for (int64_t lane = 0; lane < count;) {
    const int64_t n = first + lane, i = n % v.length, run = min(count - lane, v.length - i);
    T* at = tensor + n / v.length * channels * v.length + i;
    for (int64_t r = 0; r < taken; ++r) f(at + r * v.length, tile + r * kTileColumns + lane, run);
    lane += run;
  }
}

// The functions of ProjectedKernel.
void begin(const ProjectedProblem& v, Span here, float* memory) {
  const Memory m = carve(v, here, memory);
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    float* residual = m.residual + tile * v.channels * kTileColumns;
    if (count < kTileColumns) memset(residual, 0, sizeof(float) * v.channels * kTileColumns);
    const auto get = [](const float* from, float* to, int64_t run) { memcpy(to, from, sizeof(float) * run); };
    for_runs(v, n, count, v.x, v.channels, v.channels, residual, get);
  });
}

Latents enter(const ProjectedProblem& v, Span here, int64_t stage, float* memory) {
  const Memory m = carve(v, here, memory);
  const float *weight = v.maps[4 * stage], *bias = v.maps[4 * stage + 1];
  const int64_t own = v.d * kTileColumns, step = own * m.kept, at = stage % m.kept * own;
  for_tiles(here, [&](int64_t, int64_t, int64_t tile) {
    const float* residual = m.residual + tile * v.channels * kTileColumns;
    float *latents = m.latents + tile * step + at, *searched = m.searched + tile * own;
    Floats squares[kTileRegisters] = {};
    for_rows(v.d, [&]<int kR>(int64_t r) {
      Sums<Float32, kR> sums = {};
      add_bias(sums, bias + r);
      sums.add(v.channels, weight + r * v.channels, v.channels, 1, residual);
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kTileRegisters; ++w) {
          squares[w] += sums.of[i][w] * sums.of[i][w];
          store(sums.of[i][w], latents + (r + i) * kTileColumns + w * kLanes);
        }
    });
    if (!v.unit) return;
    float length[kTileColumns];
    for (int w = 0; w < kTileRegisters; ++w) store(squares[w], length + w * kLanes);
    for (int lane = 0; lane < kTileColumns; ++lane) length[lane] = divisor(__builtin_sqrtf(length[lane]));
    for (int64_t i = 0; i < v.d; ++i)
      for (int lane = 0; lane < kTileColumns; ++lane)
        searched[i * kTileColumns + lane] = latents[i * kTileColumns + lane] / length[lane];
  });
  return v.unit ? Latents{m.searched, own, kTileColumns} : Latents{m.latents + at, step, kTileColumns};
}

void leave(const ProjectedProblem& v, Span here, int64_t stage, float* memory) {
  const bool last = stage + 1 == v.stages;
  if (last && !v.latents) return;
  const Memory m = carve(v, here, memory);
  const float *weight = v.maps[4 * stage + 2], *bias = v.maps[4 * stage + 3];
  const int64_t own = v.d * kTileColumns;
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    float* residual = m.residual + tile * v.channels * kTileColumns;
    float* codes = m.codes + tile * own * m.kept + stage % m.kept * own;
    for (int64_t lane = 0; lane < kTileColumns; ++lane) {
      const float* code = lane < count ? v.codes[stage] + v.indices[(n + lane) * v.stages + stage] * v.d : nullptr;
      for (int64_t i = 0; i < v.d; ++i) codes[i * kTileColumns + lane] = code ? code[i] : 0;
    }
    if (last) return;
    for_rows(v.channels, [&]<int kR>(int64_t r) {
      Sums<Float32, kR> sums = {};
      add_bias(sums, bias + r);
      sums.add(v.d, weight + r * v.d, v.d, 1, codes);
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kTileRegisters; ++w) {
          float* left = residual + (r + i) * kTileColumns + w * kLanes;
          store(load(left) - sums.of[i][w], left);
        }
    });
  });
}

void end(const ProjectedProblem& v, Span here, float* memory) {
  if (!v.latents) return;
  const Memory m = carve(v, here, memory);
  const auto put = [](float* to, const float* from, int64_t run) { memcpy(to, from, sizeof(float) * run); };
  const int64_t own = v.d * kTileColumns, rows = v.stages * v.d;
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    for_runs(v, n, count, v.latents, rows, rows, m.latents + tile * own * v.stages, put);
    for_rows(v.channels, [&]<int kR>(int64_t r) {
      Sums<Float32, kR> sums = {};
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        const float *weight = v.maps[4 * stage + 2], *bias = v.maps[4 * stage + 3];
        add_bias(sums, bias + r);
        sums.add(v.d, weight + r * v.d, v.d, 1, m.codes + (tile * v.stages + stage) * own);
      }
      float out[kR * kTileColumns];
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kTileRegisters; ++w) store(sums.of[i][w], out + i * kTileColumns + w * kLanes);
      for_runs(v, n, count, v.quantized + r * v.length, v.channels, kR, out, put);
    });
  });
}

void normalize(const float* codes, int64_t k, int64_t d, float* to) {
  for (int64_t n = 0; n < k; ++n, codes += d, to += d) {
    float squares = 0;
    for (int64_t i = 0; i < d; ++i) squares += codes[i] * codes[i];
    const float length = divisor(__builtin_sqrtf(squares));
    for (int64_t i = 0; i < d; ++i) to[i] = codes[i] / length;
  }
}

}  // namespace

extern const ProjectedKernel projected_kernel;
const ProjectedKernel projected_kernel{scratch_size, begin, enter, leave, end, normalize};

}  // namespace vqfast::VQFAST_ISA
