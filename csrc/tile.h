// The inner loop: a block of rows times a tile of codes, in registers.
//
// Compiled once for each instruction set; VQFAST_ISA names the namespace. Everything here has internal linkage,
// and nothing of the standard library is instantiated: the linker must never pick a function that was compiled
// for a CPU with more instructions than the one it runs on.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vqfast::VQFAST_ISA {
namespace {

// A vector of float32 lanes, one of float64 of the same size, and as many rows as the registers hold sums for.
#if defined(__AVX512F__)
using Vec = __m512;
using Wide = __m512d;
constexpr int kRows = 12;
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline uint32_t at_least(Vec a, float b) { return _mm512_cmp_ps_mask(a, _mm512_set1_ps(b), _CMP_GE_OQ); }
inline float highest(Vec a) { return _mm512_reduce_max_ps(a); }
inline double total(Wide a) { return _mm512_reduce_add_pd(a); }
#elif defined(__AVX2__)
using Vec = __m256;
using Wide = __m256d;
constexpr int kRows = 6;
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline uint32_t at_least(Vec a, float b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(b), _CMP_GE_OQ));
}
#else
typedef float Vec __attribute__((vector_size(16)));
typedef double Wide __attribute__((vector_size(16)));
constexpr int kRows = 6;
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline uint32_t at_least(Vec a, float b) {
  return (a[0] >= b) | (a[1] >= b) << 1 | (a[2] >= b) << 2 | (a[3] >= b) << 3;
}
#endif
#if !defined(__AVX512F__)
inline float highest(Vec a) {
  float most = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof most; ++i) most = a[i] > most ? a[i] : most;
  return most;
}
inline double total(Wide a) {
  double sum = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof sum; ++i) sum += a[i];
  return sum;
}
#endif

constexpr int kLanes = sizeof(Vec) / sizeof(float);
constexpr int kVectors = 2;
constexpr int kTile = kVectors * kLanes;  // codes side by side

inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// sum + row * code, lane by lane. A step of the tile multiplies one float32, or a pair of bf16 that fills its place.
struct Single {
  static constexpr bool kPairs = false;
  static Vec add(Vec sum, float row, Vec code) { return sum + row * code; }
};
#if defined(__AVX512BF16__)
struct Pair {
  static constexpr bool kPairs = true;
  static Vec add(Vec sum, float row, Vec code) {
    return _mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_ps(row)), __m512bh(code));
  }
};
constexpr bool kHasPairs = true;
#else
using Pair = Single;
constexpr bool kHasPairs = false;
#endif

// epilogue(r, sums) for each row r: sums = bias + sum over steps of rows[step][r] * codes[step][0 .. kTile).
template <class Product, class Epilogue>
[[gnu::always_inline]] inline void tile(
    int64_t steps, const float* rows, const float* codes, const float* bias, Epilogue epilogue) {
  Vec sums[kRows][kVectors];
  for (auto& row : sums)
    for (int v = 0; v < kVectors; ++v) row[v] = load(bias + v * kLanes);
  for (; steps > 0; --steps, rows += kRows, codes += kTile) {
    Vec code[kVectors];
    for (int v = 0; v < kVectors; ++v) code[v] = load(codes + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Product::add(sums[r][v], rows[r], code[v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) epilogue(r, sums[r]);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
