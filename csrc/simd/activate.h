// Activations, and the gradient of a gate, a register at a time.
#pragma once

#include "shared/contract.h"
#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

// What `exp_less` needs: kTerms Taylor terms for |x| <= log(2) / 2, log(2) as kHigh + kLow, the number kRound whose
// addition leaves the nearest integer in the low bits, the bits of the mantissa, and an argument whose exponential is
// as good as 0.
template <class Register>
struct Exponential;
template <>
struct Exponential<Floats> {
  using T = float;
  typedef int32_t Bits __attribute__((vector_size(sizeof(Floats))));
  static constexpr int kTerms = 7, kMantissa = 23;
  static constexpr float kRound = 0x1.8p23f, kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f, kSmallest = -87;
};
template <>
struct Exponential<Doubles> {
  using T = double;
  typedef int64_t Bits __attribute__((vector_size(sizeof(Doubles))));
  static constexpr int kTerms = 13, kMantissa = 52;
  static constexpr double kRound = 0x1.8p52, kHigh = 0x1.62e42fefa38p-1, kLow = 0x1.ef35793c7673p-45, kSmallest = -708;
};

// exp(x) - kLess for x <= 0, where kLess is 0 or 1; the relative error is that of rounding. NaN stays NaN.
template <int kLess, class V>
[[gnu::always_inline]] inline V exp_less(V x) {
  using E = Exponential<V>;
  using T = typename E::T;
  using Bits = typename E::Bits;
  const V smallest = V{} + E::kSmallest;
  x = x < smallest ? smallest : x;
  V whole = x * T(1.4426950408889634) + E::kRound;
  const Bits exponent = (Bits)whole;
  whole -= E::kRound;
  const V rest = x - whole * E::kHigh - whole * E::kLow;
  constexpr auto kFactor = [](int n) {  // 1 / n!
    double factor = 1;
    for (; n > 1; --n) factor /= n;
    return T(factor);
  };
  V sum = V{} + kFactor(E::kTerms);
#pragma GCC unroll 16
  for (int n = E::kTerms - 1; n > 0; --n) sum = kFactor(n) + rest * sum;
  sum *= rest;  // exp(rest) - 1
  const V power = (V)((exponent << E::kMantissa) + (Bits)(V{} + T(1)));  // 2^whole
  return power * sum + (power - T(kLess));
}

template <class V>
[[gnu::always_inline]] inline V absolute(V x) {
  using Bits = typename Exponential<V>::Bits;
  return (V)((Bits)x & ~(Bits)-V{});
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

// x times the probability that a standard normal variable is below x.
template <class V>
[[gnu::always_inline]] inline V gelu(V x) {
  using T = typename Exponential<V>::T;
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) x[i] *= T(0.5 * (1 + __builtin_erf(x[i] * 0.7071067811865476)));
  return x;
}

// a / sqrt(max(b, 1)). NaN stays NaN.
template <class V>
[[gnu::always_inline]] inline V over_root(V a, V b) {
  using T = typename Exponential<V>::T;
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) a[i] /= T(__builtin_sqrt(b[i] < 1 ? T(1) : b[i]));
  return a;
}

// tanh(a) * sigmoid(b), by one division.
template <class V>
[[gnu::always_inline]] inline V gated(V a, V b) {
  using T = typename Exponential<V>::T;
  using Bits = typename Exponential<V>::Bits;
  const V x = exp_less<1>(absolute(a) * T(-2)), e = exp_less<0>(-absolute(b)), one = V{} + T(1);
  const V size = -x * (b < 0 ? e : one) / ((x + T(2)) * (e + T(1)));
  return (V)((Bits)size | ((Bits)a & (Bits)-V{}));
}

// What `gated` is made of, for its gradient (van den Oord et al. 2016, equation 2).
template <class V>
struct Gate {
  V tanh, sigmoid;
  [[gnu::always_inline]] Gate(V a, V b)
      : tanh(VQFAST_ISA::tanh(a)), sigmoid(VQFAST_ISA::sigmoid(b)) {}
  // The derivatives by a and by b.
  [[gnu::always_inline]] V to_a() const { return (1 - tanh * tanh) * sigmoid; }
  [[gnu::always_inline]] V to_b() const { return tanh * sigmoid * (1 - sigmoid); }
};

constexpr bool is_paired(Activation activation) { return activation >= Activation::gate; }

// An activation of sums.
template <class V>
[[gnu::always_inline]] inline V activated(Activation activation, V x) {
  switch (activation) {
    case Activation::relu: return x < 0 ? V{} : x;
    case Activation::elu: return elu(x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return gelu(x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanh(x);
    default: return x;
  }
}
// An activation of pairs of sums.
template <class V>
[[gnu::always_inline]] inline V activated(Activation activation, V a, V b) {
  switch (activation) {
    case Activation::gate: return gated(a, b);
    case Activation::glu: return a * sigmoid(b);
    case Activation::norm: return over_root(a, b);
    default: return a * b;
  }
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
