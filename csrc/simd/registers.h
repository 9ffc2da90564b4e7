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
#endif
#if !defined(__AVX512F__) && !defined(VQFAST_NEON)
inline float max_lane(Floats a) {
  float largest = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof largest; ++i) largest = a[i] > largest ? a[i] : largest;
  return largest;
}
template <class Register>
inline auto sum_lanes(Register a) {
  auto sum = a[0];
  for (unsigned i = 1; i < sizeof a / sizeof sum; ++i) sum += a[i];
  return sum;
}
#endif

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int kLanes = sizeof(Floats) / sizeof(float);
constexpr int kTileRegisters = 2;                       // registers of columns side by side in a tile
constexpr int kTileColumns = kTileRegisters * kLanes;  // float32 columns of a tile

typedef uint32_t Bits32 __attribute__((vector_size(sizeof(Floats))));
typedef uint16_t Bits16 __attribute__((vector_size(sizeof(Floats) / 2)));

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
  Floats numbers;
  for (int i = 0; i < int(sizeof numbers / sizeof numbers[0]); ++i) numbers[i] = float(p[i]);
  return numbers;
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
