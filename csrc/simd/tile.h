// The inner loop: a block of rows times a block of columns, in registers.
//
// Compiled once for each instruction set; VQFAST_ISA names the namespace. Everything here has internal linkage,
// and nothing of the standard library is instantiated: the linker must never pick a function that was compiled
// for a CPU with more instructions than the one it runs on.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
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
inline uint32_t at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline float highest(Vec a) { return _mm512_reduce_max_ps(a); }
inline float total(Vec a) { return _mm512_reduce_add_ps(a); }
inline double total(Wide a) { return _mm512_reduce_add_pd(a); }
#elif defined(__AVX2__)
using Vec = __m256;
using Wide = __m256d;
constexpr int kRows = 6;
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline uint32_t at_least(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
#else
typedef float Vec __attribute__((vector_size(16)));
typedef double Wide __attribute__((vector_size(16)));
constexpr int kRows = 6;
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline uint32_t at_least(Vec a, Vec b) {
  return (a[0] >= b[0]) | (a[1] >= b[1]) << 1 | (a[2] >= b[2]) << 2 | (a[3] >= b[3]) << 3;
}
#endif
#if !defined(__AVX512F__)
inline float highest(Vec a) {
  float most = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof most; ++i) most = a[i] > most ? a[i] : most;
  return most;
}
template <class V>
inline auto total(V a) {
  auto sum = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof sum; ++i) sum += a[i];
  return sum;
}
#endif

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int kLanes = sizeof(Vec) / sizeof(float);
constexpr int kVectors = 2;
constexpr int kTile = kVectors * kLanes;  // columns side by side

inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline Wide load(const double* p) {
  Wide v;
  memcpy(&v, p, sizeof v);
  return v;
}
// bf16 in memory, float32 in registers.
struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float x) : bits(uint16_t(__builtin_bit_cast(uint32_t, x) >> 16)) {}
  explicit operator float() const { return __builtin_bit_cast(float, uint32_t{bits} << 16); }
};
inline Vec load(const Bf16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  Vec v;
  for (int i = 0; i < int(sizeof v / sizeof v[0]); ++i) v[i] = float(p[i]);
  return v;
#endif
}
template <class T, class V>
inline void store(V v, T* p) {
  memcpy(p, &v, sizeof v);
}

// Lanes with the bit kHalf of a change places with those without it of b.
template <int kHalf, class V, int... kLane>
[[gnu::always_inline]] inline void exchange(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const V first = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + (kLane ^ kHalf) : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane : kLane | kHalf)...);
  a = first;
}

// Rows of as many vectors as they have lanes become columns.
template <int kHalf, class V>
[[gnu::always_inline]] inline void transpose(V* rows) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    if (!(r & kHalf)) exchange<kHalf>(rows[r], rows[r | kHalf], std::make_integer_sequence<int, kLanes>{});
  if constexpr (kHalf > 1) transpose<kHalf / 2>(rows);
}
template <class V, int kLanes>
[[gnu::always_inline]] inline void transpose(V (&rows)[kLanes]) {
  transpose<kLanes / 2>(&rows[0]);
}

// sum + row * column, lane by lane. A step multiplies one number, or a pair of bf16 or four integers in a float32's
// place. `write` rounds and returns what it wrote.
struct Single {
  using Element = float;
  using Stored = float;
  using Vector = Vec;
  static constexpr int kPer = 1;
  static Vec add(Vec sum, float row, Vec column) { return sum + row * column; }
  static Vec write(Vec rows, Stored* to) { return memcpy(to, &rows, sizeof rows), rows; }
};
struct Double {
  using Element = double;
  using Vector = Wide;
  static Wide add(Wide sum, double row, Wide column) { return sum + row * column; }
};
#if defined(__AVX512BF16__)
struct Pair {
  using Element = float;
  using Stored = Bf16;
  using Vector = Vec;
  static constexpr int kPer = 2;
  static Vec add(Vec sum, float row, Vec column) {
    return _mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_ps(row)), __m512bh(column));
  }
  static Vec write(Vec rows, Stored* to) {
    const __m256bh rounded = _mm512_cvtneps_pbh(rows);
    memcpy(to, &rounded, sizeof rounded);
    return load(to);
  }
};
// Signed in rows, more by 128 in columns. Sums are int32 in a float32's place.
struct Quad {
  using Element = float;
  using Stored = int8_t;
  using Vector = Vec;
  static constexpr int kPer = 4;
  static Vec add(Vec sum, float row, Vec column) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(column), "v"(_mm512_set1_ps(row)));  // the compiler's own spills
    return sum;
  }
  static Vec write(Vec rows, Stored* to) {
    const __m512i rounded = _mm512_cvtps_epi32(rows);
    _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8(rounded));
    return _mm512_cvtepi32_ps(rounded);
  }
  static Vec begin(int32_t sum) { return (Vec)_mm512_set1_epi32(sum); }
  static Vec value(Vec sum) { return _mm512_cvtepi32_ps((__m512i)sum); }
};
constexpr int kMostPer = Quad::kPer;
#else
constexpr int kMostPer = Single::kPer;
#endif

// Sums of kR rows by kV vectors of columns, in registers.
template <class Product, int kR = kRows, int kV = kVectors>
struct Sums {
  using T = typename Product::Element;
  using V = typename Product::Vector;
  static constexpr int kLanes = sizeof(V) / sizeof(T), kColumns = kV * kLanes;
  V of[kR][kV];

  // Every row begins with the same numbers, one a column; with a row stride, with its own.
  [[gnu::always_inline]] void start(const T* from, int64_t row_stride = 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kV; ++v) of[r][v] = load(from + r * row_stride + v * kLanes);
  }

  // += over steps of rows[r * row_stride + step * step_stride] * columns[step][0 .. kColumns)
  template <class Stored>
  [[gnu::always_inline]] void add(
      int64_t steps, const T* rows, int64_t row_stride, int64_t step_stride, const Stored* columns) {
    // Few sums would wait for each other: every kWays-th step has its own. Few rows wait for the columns.
    constexpr int kWays = kR * kV >= 8 ? 1 : kR * kV >= 4 ? 2 : 4, kBytes = kWays * kColumns * sizeof(Stored);
    if constexpr (kWays > 1) {
      V apart[kWays][kR][kV] = {};
      for (; steps >= kWays; steps -= kWays) {
#pragma GCC unroll 8
        for (int at = 0; at < kBytes; at += 64) __builtin_prefetch((const char*)columns + 2048 + at);
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way, rows += step_stride, columns += kColumns)
          step(apart[way], rows, row_stride, columns);
      }
#pragma GCC unroll 4
      for (int way = 0; way < kWays; ++way)
        for (int r = 0; r < kR; ++r)
          for (int v = 0; v < kV; ++v) of[r][v] += apart[way][r][v];
    }
    for (; steps > 0; --steps, rows += step_stride, columns += kColumns) step(of, rows, row_stride, columns);
  }

  template <class Stored>
  [[gnu::always_inline]] static void step(V (&sums)[kR][kV], const T* rows, int64_t row_stride, const Stored* columns) {
    V column[kV];
    for (int v = 0; v < kV; ++v) column[v] = load(columns + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kV; ++v) sums[r][v] = Product::add(sums[r][v], rows[r * row_stride], column[v]);
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
