// The widest registers of an instruction set, and their numbers in and out of memory.
//
// Per target: every file in simd/, and every kernel, is compiled once for each instruction set with VQFAST_ISA as the
// name of its namespace. Everything in here has internal linkage, and no template of the standard library is
// instantiated: the linker keeps one copy of a function that several files define, and must never keep one that was
// compiled for a CPU with more instructions than the one it runs on.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(VQFAST_NEON)
#include <arm_neon.h>
#endif

namespace vqfast::VQFAST_ISA {
namespace {

// Each instruction set defines:
// - Floats and Doubles, a register of float32 and one of float64 lanes, of the same size;
// - kTileRows, the rows of a tile whose sums fit into the registers, with kTileRegisters registers a row;
// - max(a, b), the larger number in each lane; b where one of them is NaN;
// - lanes_at_least(a, b), a mask whose bit i says a[i] >= b[i]; never set where one of them is NaN;
// - max_lane(a) and sum_lanes(a), the largest lane and the sum of all.
// Where the CPU multiplies integers faster than float32 numbers VQFAST_INTEGERS is defined, and further down
// - max(a, b) of int32; integers(a), the nearest int32; sqrt(a);
// - add_pairs(sum, a, b): sum + the products of a's and b's int16, two in each lane;
// - lanes_above(a, b), a mask whose bit i says a[i] > b[i], of int32;
// - lane_numbers(mask): the numbers of the lanes whose bit is set, in rising order; the lanes behind have any.
#if defined(__AVX512F__)
using Floats = __m512;
using Doubles = __m512d;
constexpr int kTileRows = 12;
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline uint32_t lanes_at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline float max_lane(Floats a) { return _mm512_reduce_max_ps(a); }
inline float sum_lanes(Floats a) { return _mm512_reduce_add_ps(a); }
inline double sum_lanes(Doubles a) { return _mm512_reduce_add_pd(a); }
#elif defined(__AVX2__)
using Floats = __m256;
using Doubles = __m256d;
constexpr int kTileRows = 6;
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline uint32_t lanes_at_least(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline float max_lane(Floats a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float sum_lanes(Floats a) {
  const __m128 four = _mm256_castps256_ps128(a) + _mm256_extractf128_ps(a, 1), two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}
inline double sum_lanes(Doubles a) {
  const __m128d two = _mm256_castpd256_pd128(a) + _mm256_extractf128_pd(a, 1);
  return two[0] + two[1];
}
#elif defined(VQFAST_NEON)
typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));
constexpr int kTileRows = 10;  // with 12, three sums of 24 go to memory and back at each step
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }  // vmaxq_f32 would return NaN
inline uint32_t lanes_at_least(Floats a, Floats b) {
  constexpr uint32x4_t kBits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgeq_f32((float32x4_t)a, (float32x4_t)b), kBits));
}
inline float max_lane(Floats a) { return vmaxnmvq_f32((float32x4_t)a); }
inline float sum_lanes(Floats a) { return vaddvq_f32((float32x4_t)a); }
inline double sum_lanes(Doubles a) { return vaddvq_f64((float64x2_t)a); }
#else
typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));
constexpr int kTileRows = 6;
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline uint32_t lanes_at_least(Floats a, Floats b) {
  return (a[0] >= b[0]) | (a[1] >= b[1]) << 1 | (a[2] >= b[2]) << 2 | (a[3] >= b[3]) << 3;
}
inline float max_lane(Floats a) {
  float largest = a[0];
  for (int i = 1; i < 4; ++i) largest = a[i] > largest ? a[i] : largest;
  return largest;
}
inline float sum_lanes(Floats a) { return (a[0] + a[1]) + (a[2] + a[3]); }
inline double sum_lanes(Doubles a) { return a[0] + a[1]; }
#endif

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int kLanes = sizeof(Floats) / sizeof(float);
constexpr int kTileRegisters = 2;                       // registers of columns side by side in a tile
constexpr int kTileColumns = kTileRegisters * kLanes;  // float32 columns of a tile

typedef uint32_t Bits32 __attribute__((vector_size(sizeof(Floats))));
typedef uint16_t Bits16 __attribute__((vector_size(sizeof(Floats) / 2)));

typedef int32_t Ints __attribute__((vector_size(sizeof(Floats))));

#if defined(__AVX512BF16__)
#define VQFAST_INTEGERS
inline Ints max(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
inline Ints integers(Floats a) { return (Ints)_mm512_cvtps_epi32(a); }
inline Floats sqrt(Floats a) { return _mm512_sqrt_ps(a); }
inline Ints add_pairs(Ints sum, Ints a, Ints b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // with the intrinsic the compiler spills sums to memory
  return sum;
}
inline uint32_t lanes_above(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
inline Ints lane_numbers(uint32_t mask) {
  const __m512i all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (Ints)_mm512_maskz_compress_epi32(__mmask16(mask), all);
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define VQFAST_INTEGERS
inline Ints max(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
inline Ints integers(Floats a) { return (Ints)_mm256_cvtps_epi32(a); }
inline Floats sqrt(Floats a) { return _mm256_sqrt_ps(a); }
inline Ints add_pairs(Ints sum, Ints a, Ints b) {
  return (Ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
}
inline uint32_t lanes_above(Ints a, Ints b) {
  return uint32_t(_mm256_movemask_ps((__m256)_mm256_cmpgt_epi32((__m256i)a, (__m256i)b)));
}
struct LaneNumbers {
  uint64_t of[256];  // by mask, a byte a number
  constexpr LaneNumbers() : of{} {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 7; lane >= 0; --lane)
        if (mask >> lane & 1) of[mask] = of[mask] << 8 | uint64_t(lane);
  }
};
constexpr LaneNumbers kLaneNumbers;
inline Ints lane_numbers(uint32_t mask) {
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&kLaneNumbers.of[mask]));
}
#endif

// The bits of the bfloat16 nearest to a float32, both as uint32 or Bits32; NaN stays NaN.
template <class Bits>
Bits narrow_to_bf16(Bits wide) {
  return (wide & 0x7fffffffu) > 0x7f800000u ? wide >> 16 | 0x40u : (wide + 0x7fffu + (wide >> 16 & 1u)) >> 16;
}

// A bfloat16 number in memory. Conversions cut bits off; `nearest` rounds.
struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float x) : bits(uint16_t(__builtin_bit_cast(uint32_t, x) >> 16)) {}
  explicit operator float() const { return __builtin_bit_cast(float, uint32_t{bits} << 16); }
  static Bf16 nearest(float x) {
    Bf16 rounded;
    rounded.bits = uint16_t(narrow_to_bf16(__builtin_bit_cast(uint32_t, x)));
    return rounded;
  }
};

// A register of the numbers from p on, at any address; bfloat16 widened to float32.
inline Floats load(const float* p) {
  Floats numbers;
  memcpy(&numbers, p, sizeof numbers);
  return numbers;
}
inline Doubles load(const double* p) {
  Doubles numbers;
  memcpy(&numbers, p, sizeof numbers);
  return numbers;
}
inline Floats load(const Bf16* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#elif defined(VQFAST_NEON)
  return (Floats)vshll_n_u16(vld1_u16(&p->bits), 16);
#else
  Bits16 halves;
  memcpy(&halves, p, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Bits32) << 16);
#endif
}

// A register's lanes, as they are, to any address.
template <class T, class Register>
inline void store(Register numbers, T* p) {
  memcpy(p, &numbers, sizeof numbers);
}

// Lanes of a whose number has the bit kHalf change places with the lanes of b whose number lacks it.
template <int kHalf, class Register, int... kLane>
[[gnu::always_inline]] inline void exchange(Register& a, Register& b, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const Register first = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + (kLane ^ kHalf) : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane : kLane | kHalf)...);
  a = first;
}

// Transposes a square matrix in place: as many registers as each has lanes.
template <int kHalf, class Register>
[[gnu::always_inline]] inline void transpose(Register* rows) {
  constexpr int kLanes = sizeof(Register) / sizeof(Register{}[0]);
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    if (!(r & kHalf)) exchange<kHalf>(rows[r], rows[r | kHalf], std::make_integer_sequence<int, kLanes>{});
  if constexpr (kHalf > 1) transpose<kHalf / 2>(rows);
}
template <class Register, int kLanes>
[[gnu::always_inline]] inline void transpose(Register (&rows)[kLanes]) {
  transpose<kLanes / 2>(&rows[0]);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
