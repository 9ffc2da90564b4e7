// The floating-point types that tensors hold, and their numbers in and out of vectors.
#pragma once

#include "nearest.h"
#include "tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float x) {
    const uint32_t exact = __builtin_bit_cast(uint32_t, x);
    bits = uint16_t(x != x ? 0x7fc0u : (exact + 0x7fffu + (exact >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return __builtin_bit_cast(float, uint32_t{bits} << 16); }
};

struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(float x) {
    const uint32_t exact = __builtin_bit_cast(uint32_t, x), size = exact & 0x7fffffffu;
    const uint32_t normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    // adding 0.5 shifts a subnormal's bits to the end, rounded
    const uint32_t small = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, size) + 0.5f) - (126u << 23);
    const uint32_t finite = size < 113u << 23 ? small : normal;
    const uint32_t rest = size > 255u << 23 ? 0x7e00u : size >= 0x477ff000u ? 0x7c00u : finite;
    bits = uint16_t(exact >> 16 & 0x8000u | rest);
  }
  explicit operator float() const {
    const uint32_t sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    const uint32_t wide = rest >= 0x7c00u << 13 ? rest | 0x7f800000u  // not finite
                                                : __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, rest) * 0x1p112f);
    return __builtin_bit_cast(float, sign | wide);
  }
};

template <class F>
auto with_type(Type type, F f) {
  switch (type) {
    case Type::f64: return f(double{});
    case Type::bf16: return f(Bf16{});
    case Type::f16: return f(Half{});
    default: return f(float{});
  }
}

// What sums of a type are held in.
template <class T>
struct Accumulate {
  using Product = Single;
};
template <>
struct Accumulate<double> {
  using Product = Double;
};

// A vector of the first `count` numbers, the others 0.
template <class V, class T>
[[gnu::always_inline]] inline V load_part(const T* from, int64_t count) {
  using A = __typeof__(V{}[0] + V{}[0]);
  constexpr int kWidth = sizeof(V) / sizeof(A);
  A lanes[kWidth];
  if (count >= kWidth)
    for (int i = 0; i < kWidth; ++i) lanes[i] = A(from[i]);
  else
    for (int i = 0; i < kWidth; ++i) lanes[i] = i < count ? A(from[i]) : A(0);
  return load(lanes);
}

// Its first `count` numbers.
template <class V, class T>
[[gnu::always_inline]] inline void store_part(V v, T* to, int64_t count) {
  using A = __typeof__(V{}[0] + V{}[0]);
  constexpr int kWidth = sizeof(V) / sizeof(A);
  A lanes[kWidth];
  store(v, lanes);
  if (count >= kWidth)
    for (int i = 0; i < kWidth; ++i) to[i] = T(lanes[i]);
  else
    for (int i = 0; i < count; ++i) to[i] = T(lanes[i]);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
