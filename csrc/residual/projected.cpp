// Residual stages between projections: a tile of vectors side by side, channel by channel, goes through all stages.
//
// Floor: 2 x channels x d multiplications a vector and stage, in float32, one half each way. Weights are the tile's
// rows as they lie in memory, vectors its columns; what is left of them stays in L2 from the first stage to the last.

#include "residual/projected.h"

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// What torch's normalize divides by.
float at_least_tiny(float length) { return length < 1e-12f ? 1e-12f : length; }

// f.operator()<rows>(first) over `count` rows of a matrix, as many at once as the registers hold.
template <class F>
void for_rows(int64_t count, F f) {
  int64_t r = 0;
  for (; r + kRows <= count; r += kRows) f.template operator()<kRows>(r);
  if constexpr (kRows > 8)
    for (; r + 8 <= count; r += 8) f.template operator()<8>(r);
  for (; r < count; ++r) f.template operator()<1>(r);
}

// A number a row.
template <int kR>
[[gnu::always_inline]] inline void add_bias(Sums<Single, kR>& sums, const float* bias) {
#pragma GCC unroll 16
  for (int i = 0; i < kR; ++i)
    for (int w = 0; w < kVectors; ++w) sums.of[i][w] += bias[i];
}

// A thread's memory, each for all tiles; `kept` stages' latents and codes.
struct Memory {
  int64_t kept;
  float *residual, *latents, *searched, *codes;
};

int64_t kept(const Projected& v) { return v.latents ? v.stages : 1; }

int64_t scratch(const Projected& v, int64_t vectors) {
  return ceil_div(vectors, kTile) * kTile * (v.channels + v.d * (2 * kept(v) + v.unit));
}

Memory carve(const Projected& v, Span here, float* memory) {
  const int64_t vectors = ceil_div(count_of(here), kTile) * kTile;
  float* latents = memory + vectors * v.channels;
  float* codes = latents + vectors * v.d * kept(v);
  return {kept(v), memory, latents, codes + vectors * v.d * kept(v), codes};
}

// f(the first vector of a tile, their number, which tile)
template <class F>
void for_tiles(Span here, F f) {
  for (int64_t n = here.begin, tile = 0; n < here.end; n += kTile, ++tile) f(n, least(kTile, here.end - n), tile);
}

// Rows of a tile from or to their place in a (batch, of, length) tensor: f(pointer there, pointer in the tile, count).
template <class T, class F>
void for_runs(const Projected& v, int64_t first, int64_t count, T* there, int64_t of, int64_t rows, float* tile, F f) {
  for (int64_t lane = 0; lane < count;) {
    const int64_t n = first + lane, i = n % v.length, run = least(count - lane, v.length - i);
    T* at = there + n / v.length * of * v.length + i;
    for (int64_t r = 0; r < rows; ++r) f(at + r * v.length, tile + r * kTile + lane, run);
    lane += run;
  }
}

void begin(const Projected& v, Span here, float* memory) {
  const Memory m = carve(v, here, memory);
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    float* residual = m.residual + tile * v.channels * kTile;
    if (count < kTile) memset(residual, 0, sizeof(float) * v.channels * kTile);
    const auto get = [](const float* from, float* to, int64_t run) { memcpy(to, from, sizeof(float) * run); };
    for_runs(v, n, count, v.x, v.channels, v.channels, residual, get);
  });
}

Latents enter(const Projected& v, Span here, int64_t stage, float* memory) {
  const Memory m = carve(v, here, memory);
  const float *weight = v.maps[4 * stage], *bias = v.maps[4 * stage + 1];
  const int64_t own = v.d * kTile, step = own * m.kept, at = stage % m.kept * own;
  for_tiles(here, [&](int64_t, int64_t, int64_t tile) {
    const float* residual = m.residual + tile * v.channels * kTile;
    float *latents = m.latents + tile * step + at, *searched = m.searched + tile * own;
    Vec squares[kVectors] = {};
    for_rows(v.d, [&]<int kR>(int64_t r) {
      Sums<Single, kR> sums = {};
      add_bias(sums, bias + r);
      sums.add(v.channels, weight + r * v.channels, v.channels, 1, residual);
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kVectors; ++w) {
          squares[w] += sums.of[i][w] * sums.of[i][w];
          store(sums.of[i][w], latents + (r + i) * kTile + w * kLanes);
        }
    });
    if (!v.unit) return;
    float length[kTile];
    for (int w = 0; w < kVectors; ++w) store(squares[w], length + w * kLanes);
    for (int lane = 0; lane < kTile; ++lane) length[lane] = at_least_tiny(__builtin_sqrtf(length[lane]));
    for (int64_t i = 0; i < v.d; ++i)
      for (int lane = 0; lane < kTile; ++lane) searched[i * kTile + lane] = latents[i * kTile + lane] / length[lane];
  });
  return v.unit ? Latents{m.searched, own, kTile} : Latents{m.latents + at, step, kTile};
}

void leave(const Projected& v, Span here, int64_t stage, float* memory) {
  const bool last = stage + 1 == v.stages;
  if (last && !v.latents) return;
  const Memory m = carve(v, here, memory);
  const float *weight = v.maps[4 * stage + 2], *bias = v.maps[4 * stage + 3];
  const int64_t own = v.d * kTile;
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    float* residual = m.residual + tile * v.channels * kTile;
    float* codes = m.codes + tile * own * m.kept + stage % m.kept * own;
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const float* code = lane < count ? v.codes[stage] + v.indices[(n + lane) * v.stages + stage] * v.d : nullptr;
      for (int64_t i = 0; i < v.d; ++i) codes[i * kTile + lane] = code ? code[i] : 0;
    }
    if (last) return;
    for_rows(v.channels, [&]<int kR>(int64_t r) {
      Sums<Single, kR> sums = {};
      add_bias(sums, bias + r);
      sums.add(v.d, weight + r * v.d, v.d, 1, codes);
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kVectors; ++w) {
          float* left = residual + (r + i) * kTile + w * kLanes;
          store(load(left) - sums.of[i][w], left);
        }
    });
  });
}

void end(const Projected& v, Span here, float* memory) {
  if (!v.latents) return;
  const Memory m = carve(v, here, memory);
  const auto put = [](float* to, const float* from, int64_t run) { memcpy(to, from, sizeof(float) * run); };
  const int64_t own = v.d * kTile, rows = v.stages * v.d;
  for_tiles(here, [&](int64_t n, int64_t count, int64_t tile) {
    for_runs(v, n, count, v.latents, rows, rows, m.latents + tile * own * v.stages, put);
    for_rows(v.channels, [&]<int kR>(int64_t r) {
      Sums<Single, kR> sums = {};
      for (int64_t stage = 0; stage < v.stages; ++stage) {
        const float *weight = v.maps[4 * stage + 2], *bias = v.maps[4 * stage + 3];
        add_bias(sums, bias + r);
        sums.add(v.d, weight + r * v.d, v.d, 1, m.codes + (tile * v.stages + stage) * own);
      }
      float out[kR * kTile];
      for (int i = 0; i < kR; ++i)
        for (int w = 0; w < kVectors; ++w) store(sums.of[i][w], out + i * kTile + w * kLanes);
      for_runs(v, n, count, v.quantized + r * v.length, v.channels, kR, out, put);
    });
  });
}

void normalize(const float* codes, int64_t k, int64_t d, float* to) {
  for (int64_t n = 0; n < k; ++n, codes += d, to += d) {
    float squares = 0;
    for (int64_t i = 0; i < d; ++i) squares += codes[i] * codes[i];
    const float length = at_least_tiny(__builtin_sqrtf(squares));
    for (int64_t i = 0; i < d; ++i) to[i] = codes[i] / length;
  }
}

}  // namespace

extern const ProjectedKernel projected_kernel;
const ProjectedKernel projected_kernel{scratch, begin, enter, leave, end, normalize};

}  // namespace vqfast::VQFAST_ISA
