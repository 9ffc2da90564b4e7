// The four floating-point precisions that tensors have: their numbers in and out of registers, rounded to nearest.
#pragma once

#include "shared/precision.h"
#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// A float16 number in memory. `widen` and `narrow` convert bits to and from those of a float32, of one number (uint32)
// or of a register (Bits32).
struct Fp16 {
  uint16_t bits;
  // A float32 with float16's bits in place has an exponent that is too small by 112. Scaling mends that, and makes
  // subnormals right too.
  template <class Bits>
  static Bits widen(Bits narrow) {
    const Bits sign = (narrow & 0x8000u) << 16, rest = (narrow & 0x7fffu) << 13;
    return sign | (rest >= 0x7c00u << 13 ? rest | 0x7f800000u : scaled(rest, 0x1p112f));
  }
  template <class Bits>
  static Bits narrow(Bits wide) {
    const Bits sign = wide >> 16 & 0x8000u, size = wide & 0x7fffffffu;
    const Bits normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
    const Bits subnormal = added(size, 0.5f) - (126u << 23);  // the addition shifts its bits to the end and rounds
    const Bits finite = size < 113u << 23 ? subnormal : normal;
    return sign | (size > 0x7f800000u ? Bits{} + 0x7e00u : size >= 0x477ff000u ? Bits{} + 0x7c00u : finite);
  }
  explicit operator float() const { return __builtin_bit_cast(float, widen(uint32_t{bits})); }

 private:
  static uint32_t scaled(uint32_t bits, float by) {
    return __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, bits) * by);
  }
  static uint32_t added(uint32_t bits, float to) {
    return __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, bits) + to);
  }
  template <class Bits>
  static Bits scaled(Bits bits, float by) { return (Bits)((Floats)bits * by); }
  template <class Bits>
  static Bits added(Bits bits, float to) { return (Bits)((Floats)bits + to); }
};

// f(a number of the type that a precision names)
template <class F>
auto with_precision(Precision precision, F f) {
  switch (precision) {
    case Precision::f64: return f(double{});
    case Precision::bf16: return f(Bf16{});
    case Precision::f16: return f(Fp16{});
    default: return f(float{});
  }
}

// As `with_precision`, of the precisions that are computed with numbers of type A alone.
template <class A, class F>
auto with_precision_in(Precision precision, F f) {
  if constexpr (sizeof(A) == sizeof(double)) {
    return f(double{});
  } else {
    switch (precision) {
      case Precision::bf16: return f(Bf16{});
      case Precision::f16: return f(Fp16{});
      default: return f(float{});
    }
  }
}
// f(a number of the type with which a precision is computed)
template <class F>
auto with_accumulated(Precision precision, F f) {
  return precision == Precision::f64 ? f(double{}) : f(float{});
}

// How numbers of type T are multiplied and summed: in float64 if T is that, else in float32.
template <class T>
struct Accumulate {
  using Arithmetic = Float32;
};
template <>
struct Accumulate<double> {
  using Arithmetic = Float64;
};

// A whole register of numbers of any type, widened or narrowed.
template <class Register, class T>
[[gnu::always_inline]] inline Register load_as(const T* from) {
  if constexpr (__is_same(T, Fp16)) {
    Bits16 bits;
    memcpy(&bits, from, sizeof bits);
    return (Register)Fp16::widen(__builtin_convertvector(bits, Bits32));
  } else {
    return load(from);
  }
}
template <class Register, class T>
[[gnu::always_inline]] inline void store_as(Register numbers, T* to) {
  if constexpr (sizeof(T) == 2) {
    Bits32 wide = (Bits32)numbers;
    if constexpr (__is_same(T, Fp16))
      wide = Fp16::narrow(wide);
    else
      wide = narrow_to_bf16(wide);
    const Bits16 bits = __builtin_convertvector(wide, Bits16);
    memcpy(to, &bits, sizeof bits);
  } else {
    store(numbers, to);
  }
}

// As `load_as` and `store_as`, of the first `count` numbers alone, fewer than a register's: memory behind them isn't
// touched, other lanes are 0. Functions of their own, so that they aren't compiled at each use.
template <class Register, class T>
[[gnu::noinline]] Register load_few(const T* from, int64_t count) {
  T part[sizeof(Register) / sizeof(Register{}[0])] = {};
  for (int i = 0; i < count; ++i) part[i] = from[i];
  return load_as<Register>(part);
}
template <class Register, class T>
[[gnu::noinline]] void store_few(Register numbers, T* to, int64_t count) {
  T part[sizeof(Register) / sizeof(Register{}[0])];
  store_as(numbers, part);
  for (int i = 0; i < count; ++i) to[i] = part[i];
}
// The same of any `count`.
template <class Register, class T>
[[gnu::always_inline]] inline Register load_part(const T* from, int64_t count) {
  constexpr int kWidth = sizeof(Register) / sizeof(Register{}[0]);
  if (count >= kWidth) return load_as<Register>(from);
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return _mm512_maskz_loadu_ps((1u << count) - 1, from);
  if constexpr (__is_same(T, double)) return _mm512_maskz_loadu_pd((1u << count) - 1, from);
#elif defined(__AVX2__)
  static constexpr int32_t kLanesOf[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const auto* lanes = reinterpret_cast<const __m128i*>(kLanesOf + kLanes - count);
  if constexpr (__is_same(T, float)) return _mm256_maskload_ps(from, _mm256_loadu_si256((const __m256i*)lanes));
  if constexpr (__is_same(T, double)) return _mm256_maskload_pd(from, _mm256_cvtepi32_epi64(_mm_loadu_si128(lanes)));
#endif
  return load_few<Register>(from, count);
}
template <class Register, class T>
[[gnu::always_inline]] inline void store_part(Register numbers, T* to, int64_t count) {
  constexpr int kWidth = sizeof(Register) / sizeof(Register{}[0]);
  if (count >= kWidth) return store_as(numbers, to);
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return _mm512_mask_storeu_ps(to, (1u << count) - 1, numbers);
  if constexpr (__is_same(T, double)) return _mm512_mask_storeu_pd(to, (1u << count) - 1, numbers);
#endif
  store_few(numbers, to, count);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
