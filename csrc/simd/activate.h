// Activations, and the gradient of the gate of a gated convolution, a register at a time.
#pragma once

#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

template <class V>
struct Exponential;  // what exp needs: the Taylor terms for |x| <= log(2) / 2, and how the exponent is stored
template <>
struct Exponential<Vec> {
  using T = float;
  typedef int32_t Bits __attribute__((vector_size(sizeof(Vec))));
  static constexpr int kTerms = 7, kMantissa = 23;
  static constexpr float kRound = 0x1.8p23f, kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f, kLeast = -87;
};
template <>
struct Exponential<Wide> {
  using T = double;
  typedef int64_t Bits __attribute__((vector_size(sizeof(Wide))));
  static constexpr int kTerms = 13, kMantissa = 52;
  static constexpr double kRound = 0x1.8p52, kHigh = 0x1.62e42fefa38p-1, kLow = 0x1.ef35793c7673p-45, kLeast = -708;
};

// exp(x) - kLess, which is 0 or 1, for x <= 0, to rounding, relative. NaN stays.
template <int kLess, class V>
[[gnu::always_inline]] inline V exp_less(V x) {
  using E = Exponential<V>;
  using T = typename E::T;
  using Bits = typename E::Bits;
  const V least = V{} + E::kLeast;
  x = x < least ? least : x;
  V whole = x * T(1.4426950408889634) + E::kRound;  // the nearest integer, in the low bits
  const Bits exponent = (Bits)whole;
  whole -= E::kRound;
  const V rest = x - whole * E::kHigh - whole * E::kLow;
  V sum = V{} + T(1);
#pragma GCC unroll 16
  for (int n = E::kTerms; n > 1; --n) sum = T(1) + rest * sum * T(1.0 / n);
  sum *= rest;  // exp(rest) - 1
  const V power = (V)((exponent << E::kMantissa) + (Bits)(V{} + T(1)));  // 2^whole
  return power * sum + (power - T(kLess));
}

template <class V>
[[gnu::always_inline]] inline V absolute(V x) {
  return x < 0 ? -x : x;
}

template <class V>
[[gnu::always_inline]] inline V tanh(V a) {
  using T = typename Exponential<V>::T;
  const V x = exp_less<1>(absolute(a) * T(-2)), t = -x / (x + T(2));
  return a < 0 ? -t : t;
}

template <class V>
[[gnu::always_inline]] inline V sigmoid(V b) {
  using T = typename Exponential<V>::T;
  const V e = exp_less<0>(-absolute(b)), one = V{} + T(1);
  return (b < 0 ? e : one) / (e + T(1));
}

template <class V>
[[gnu::always_inline]] inline V elu(V x) {
  return x < 0 ? exp_less<1>(x < 0 ? x : V{}) : x;
}

// x times the normal distribution's probability of less than x.
template <class V>
[[gnu::always_inline]] inline V gelu(V x) {
  using T = typename Exponential<V>::T;
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) x[i] *= T(0.5 * (1 + __builtin_erf(x[i] * 0.7071067811865476)));
  return x;
}

// tanh(a) * sigmoid(b) (van den Oord et al. 2016, equation 2).
template <class V>
struct Gate {
  V tanh, sigmoid;
  [[gnu::always_inline]] Gate(V a, V b)
      : tanh(VQFAST_ISA::tanh(a)), sigmoid(VQFAST_ISA::sigmoid(b)) {}
  [[gnu::always_inline]] V value() const { return tanh * sigmoid; }
  // To a and to b, for a gradient of 1.
  [[gnu::always_inline]] V to_a() const { return (1 - tanh * tanh) * sigmoid; }
  [[gnu::always_inline]] V to_b() const { return tanh * sigmoid * (1 - sigmoid); }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
