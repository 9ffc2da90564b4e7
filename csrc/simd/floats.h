// The floating-point types that tensors hold, and their numbers in and out of vectors.
#pragma once

#include "nearest/nearest.h"
#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// bf16's bits of a float32's, rounded to nearest; of one, or in vectors.
template <class Bits>
Bits narrow_to_bf16(Bits wide) {
  return (wide & 0x7fffffffu) > 0x7f800000u ? wide >> 16 | 0x40u : (wide + 0x7fffu + (wide >> 16 & 1u)) >> 16;
}

// The other sixteen bits, and how they become and are made from those of a float32, one by one or in vectors.
struct Half {
  uint16_t bits;
  // A float of the same bits has an exponent that is too small by 112; scaled, subnormals come right too.
  template <class Bits>
  static Bits widen(Bits narrow) {
    const Bits sign = (narrow & 0x8000u) << 16, rest = (narrow & 0x7fffu) << 13;
    return sign | (rest >= 0x7c00u << 13 ? rest | 0x7f800000u : scaled(rest, 0x1p112f));
  }
  template <class Bits>
  static Bits narrow(Bits wide) {
    const Bits sign = wide >> 16 & 0x8000u, size = wide & 0x7fffffffu;
    const Bits normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
    const Bits subnormal = added(size, 0.5f) - (126u << 23);  // its bits shifted to the end, rounded
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
  static Bits scaled(Bits bits, float by) { return (Bits)((Vec)bits * by); }
  template <class Bits>
  static Bits added(Bits bits, float to) { return (Bits)((Vec)bits + to); }
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

typedef uint32_t WideBits __attribute__((vector_size(sizeof(Vec))));
typedef uint16_t NarrowBits __attribute__((vector_size(sizeof(Vec) / 2)));

// Whole vectors of any type's numbers.
template <class V, class T>
[[gnu::always_inline]] inline V load_as(const T* from) {
  if constexpr (__is_same(T, Half)) {
    NarrowBits bits;
    memcpy(&bits, from, sizeof bits);
    return (V)Half::widen(__builtin_convertvector(bits, WideBits));
  } else {
    return load(from);
  }
}
template <class V, class T>
[[gnu::always_inline]] inline void store_as(V v, T* to) {
  if constexpr (sizeof(T) == 2) {
    WideBits wide = (WideBits)v;
    if constexpr (__is_same(T, Half))
      wide = Half::narrow(wide);
    else
      wide = narrow_to_bf16(wide);
    const NarrowBits bits = __builtin_convertvector(wide, NarrowBits);
    memcpy(to, &bits, sizeof bits);
  } else {
    store(v, to);
  }
}

// The first `count` numbers of a vector, the others 0.
template <class V, class T>
[[gnu::always_inline]] inline V load_part(const T* from, int64_t count) {
  constexpr int kWidth = sizeof(V) / sizeof(V{}[0]);
  if (count >= kWidth) return load_as<V>(from);
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return _mm512_maskz_loadu_ps((1u << count) - 1, from);
#endif
  T part[kWidth] = {};
  for (int i = 0; i < count; ++i) part[i] = from[i];
  return load_as<V>(part);
}
template <class V, class T>
[[gnu::always_inline]] inline void store_part(V v, T* to, int64_t count) {
  constexpr int kWidth = sizeof(V) / sizeof(V{}[0]);
  if (count >= kWidth) return store_as(v, to);
  T part[kWidth];
  store_as(v, part);
  for (int i = 0; i < count; ++i) to[i] = part[i];
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
