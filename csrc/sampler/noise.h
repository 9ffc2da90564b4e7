// The draw: argmax of logits + temperature * gumbel, with the noise of vqfast/sampling/draw.py.
//
// Two logarithms of each category in float64 would cost more than the network. A first pass computes the noise in
// float32, a register at a time; categories whose score comes within twice its error of the best are compared in
// float64. The error: u = (word + 1/2) / 2^32 and 1 - u are each rounded once (2^-24 relative), their logarithms are
// off by 2^-20 relative at most. So the outer logarithm is off by 2^-19, and by its own 2^-20 of 23 at most. kNoise is
// four times that.
#pragma once

#include "shared/glibc.h"
#include "simd/tile.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr double kNoise = 1e-4;
constexpr int kWords = 64;  // words of noise that are computed at a time

// What the noise of a code depends on: its number in raster order, the sample's number and the seed as two words.
struct Counter {
  uint32_t position, low, high, key_low, key_high;
};

// A 32-bit word in each 64-bit lane, whose upper half is ignored; `product` fills all 64 bits.
typedef uint64_t Lanes64 __attribute__((vector_size(sizeof(Floats))));
inline Lanes64 product(Lanes64 words, uint32_t factor) {
#if defined(__AVX512F__)
  return (Lanes64)_mm512_mul_epu32((__m512i)words, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Lanes64)_mm256_mul_epu32((__m256i)words, _mm256_set1_epi64x(factor));
#else
  return (words & 0xFFFFFFFF) * factor;
#endif
}

// a[n], b[n], a[n + 1], b[n + 1] and so on, where n is kFrom.
template <int kFrom, int... kLane>
inline Lanes64 zip(Lanes64 a, Lanes64 b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane % 2 * int(sizeof...(kLane)) + kFrom + kLane / 2)...);
}

// Philox 4x32-10 (Salmon et al. 2011): words [first, first + kWords) of a position's stream, where word 4 c + i is
// output i of counter c.
inline void philox(const Counter& at, uint32_t first, uint32_t (&words)[kWords]) {
  constexpr int kCounters = sizeof(Lanes64) / sizeof(uint64_t);
  for (int begin = 0; begin < kWords / 4; begin += kCounters) {
    Lanes64 c[4] = {{}, Lanes64{} + at.position, Lanes64{} + at.low, Lanes64{} + at.high};
    for (int i = 0; i < kCounters; ++i) c[0][i] = first / 4 + begin + i;
    uint32_t k0 = at.key_low, k1 = at.key_high;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
      const Lanes64 p0 = product(c[0], 0xD2511F53), p1 = product(c[2], 0xCD9E8D57);
      c[0] = (p1 >> 32) ^ c[1] ^ k0;
      c[1] = p1;
      c[2] = (p0 >> 32) ^ c[3] ^ k1;
      c[3] = p0;
    }
    const Lanes64 first_two = (c[0] & 0xFFFFFFFF) | c[1] << 32, last_two = (c[2] & 0xFFFFFFFF) | c[3] << 32;
    constexpr auto kAll = std::make_integer_sequence<int, kCounters>{};
    store(zip<0>(first_two, last_two, kAll), words + 4 * begin);
    store(zip<kCounters / 2>(first_two, last_two, kAll), words + 4 * begin + 2 * kCounters);
  }
}

// The noise that a word stands for.
inline double gumbel(uint32_t word) { return -__builtin_log(-__builtin_log((word + 0.5) * 0x1p-32)); }

// log(2^exponent (1 + r)), where 1 + r is between sqrt(1/2) and sqrt(2). The polynomial is off by 2^-22.4 of log(1 + r),
// the least that one of its degree can be; a division would take as long as all of it.
[[gnu::always_inline]] inline Floats fast_log(Ints exponent, Floats r) {
  constexpr float kFactors[] = {0.162226938f,  -0.172508536f, 0.199001538f, -0.249699064f,
                                0.333350592f, -0.500003652f, 0.999999945f};
  Floats sum = Floats{} - 0.101069623f;
#pragma GCC unroll 8
  for (const float factor : kFactors) sum = factor + r * sum;
  return __builtin_convertvector(exponent, Floats) * 0.69314718f + r * sum;
}
// The exponent of such a form of a normal number x > 0, and its 1 + r.
[[gnu::always_inline]] inline Ints exponent_of(Floats x) { return ((Ints)x - 0x3f3504f3) >> 23; }
[[gnu::always_inline]] inline Floats without(Ints exponent, Floats x) { return (Floats)((Ints)x - (exponent << 23)); }

// `gumbel` in float32, off by kNoise / 4 at most.
[[gnu::always_inline]] inline Floats fast_gumbel(Ints words) {
  const Ints upper = words < 0;  // u above 1/2, where 1 - u is exact to rounding and u isn't
  const Floats t = (__builtin_convertvector(upper ? ~words : words, Floats) + 0.5f) * 0x1p-32f;
  const Ints below = t > 0.29289322f, exponent = exponent_of(t);  // `below`: -1 where 1 - t is below sqrt(1/2)
  const Floats far = below ? 1 - 2 * t : -t;
  const Floats size = -fast_log(upper ? below : exponent, upper ? far : without(exponent, t) - 1);
  const Ints outer = exponent_of(size);
  return -fast_log(outer, without(outer, size) - 1);
}

// The drawn code of logits (k); -1 where one is NaN or the largest isn't finite. scores: room for k floats, rounded up
// to kWords.
template <class L>
int64_t draw(const L* logits, int64_t k, double temperature, const Counter& at, float* scores) {
  const int64_t padded = (k + kWords - 1) / kWords * kWords;
  if constexpr (__is_same(L, float)) memcpy(scores, logits, k * sizeof *scores);
  else
    for (int64_t i = 0; i < k; ++i) scores[i] = float(logits[i]);
  for (int64_t i = k; i < padded; ++i) scores[i] = -__builtin_inff();

  uint32_t words[kWords];
  const float infinity = __builtin_inff(), t = float(temperature);
  Floats best = Floats{} - infinity, largest = {}, finite = {};  // finite: NaN where a logit is
  for (int64_t first = 0; first < padded; first += kWords) {
    philox(at, uint32_t(first), words);
#pragma GCC unroll 4
    for (int i = 0; i < kWords; i += kLanes) {
      Ints word;
      memcpy(&word, words + i, sizeof word);
      const Floats logit = load(scores + first + i), size = logit < 0 ? -logit : logit;
      const Floats score = logit + t * fast_gumbel(word);
      finite = logit != logit ? logit : finite;
      largest = max(largest, size < infinity ? size : Floats{});
      best = max(best, score);
      store(score, scores + first + i);
    }
  }
  const double reach = double(max_lane(largest)) + 23 * temperature;
  const float threshold = max_lane(best) - 2 * float(kNoise * temperature + 0x1p-21 * reach);
  const bool bounded = threshold - threshold == 0;  // else float32 doesn't hold the scores: compare all in float64
  int64_t code = -1;
  bool failed = false;
  for (int l = 0; l < kLanes; ++l) failed |= finite[l] != finite[l];
  double highest = -__builtin_inf();
  for (int64_t first = 0, drawn = -1; first < padded; first += kLanes) {
    const uint32_t within = bounded ? lanes_at_least(load(scores + first), Floats{} + threshold) : (1u << kLanes) - 1;
    for (uint32_t lanes = within; lanes; lanes &= lanes - 1) {
      const int64_t i = first + __builtin_ctz(lanes);
      if (i / kWords != drawn) philox(at, uint32_t((drawn = i / kWords) * kWords), words);
      const double score = i < k ? double(logits[i]) + temperature * gumbel(words[i % kWords]) : highest;
      if (score > highest) highest = score, code = i;
    }
  }
  return failed || highest > __DBL_MAX__ ? -1 : code;
}

// The code of a value with a logistic distribution, of `codes` that stand for even steps from -1 to 1; -1 where the
// value is NaN. Its noise is this word of the stream.
inline int64_t draw_value(
    double mean, double log_scale, double temperature, int64_t codes, const Counter& at, int64_t word) {
  uint32_t words[kWords];
  philox(at, uint32_t(word / kWords * kWords), words);
  const double u = (words[word % kWords] + 0.5) * 0x1p-32;
  const double logistic = __builtin_log(u) - __builtin_log(1 - u);
  const double scale = temperature > 0 ? temperature * __builtin_exp(log_scale) : 0;  // also where that is infinite
  const double value = mean + scale * logistic;
  if (value != value) return -1;
  const double bounded = value < -1 ? -1 : value > 1 ? 1 : value;
  return int64_t((bounded + 1) * (double(codes - 1) / 2) + 0.5);
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
