// The decision between candidates: by their distances in float64.
#pragma once

#include "nearest/scratch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// scale^2 * |x - e|^2, both (d), computed in the lanes and the type of V.
template <class V, class C>
auto distance(const C* x, const C* e, int64_t d, double scale) {
  using Number = decltype(sum_lanes(V{}));
  constexpr int kLanes = sizeof(V) / sizeof(Number), kWays = 4;  // sums that don't wait for each other
  typedef C Numbers __attribute__((vector_size(kLanes * sizeof(C))));
  const Number unit = Number(scale);
  V sums[kWays] = {};
  const auto add = [&](int64_t i, V& sum) {
    Numbers left, right;
    memcpy(&left, x + i, sizeof left);
    memcpy(&right, e + i, sizeof right);
    const V away = (__builtin_convertvector(left, V) - __builtin_convertvector(right, V)) * unit;
    sum += away * away;
  };
  int64_t i = 0;
  for (; i + kWays * kLanes <= d; i += kWays * kLanes)
    for (int way = 0; way < kWays; ++way) add(i + way * kLanes, sums[way]);
  for (; i + kLanes <= d; i += kLanes) add(i, sums[0]);
  Number sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < d; ++i) {
    const Number away = (Number(x[i]) - Number(e[i])) * unit;
    sum += away * away;
  }
  return sum;
}

// Whether a squared distance in float64 may have over- or underflowed, so that it tells nothing.
template <class C>
bool out_of_range(double square) {
  return sizeof(C) == sizeof(double) && !(square > 0x1p-960 && square < __builtin_inf());
}

// The code nearest to a vector (D) among those for which codes(f) calls f, in rising order. Distances are computed in
// long double, whose exponents hold the squares of all float64 numbers. `index` was found without; it is right if that
// code equals the vector. room: (D), for a code that is divided by its length.
template <class C, class F>
int64_t nearest_of_any_size(
    const NearestProblem& p, const Codebook& book, const C* vector, void* room, int64_t index, F codes) {
  const auto square = [&](int64_t k) {
    const C* code = code_of<C>(p, book, k, room);
    long double sum = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      const long double away = (long double)vector[i] - (long double)code[i];
      sum += away * away;
    }
    return sum;
  };
  long double nearest = square(index);
  if (nearest == 0) return index;
  nearest = __builtin_infl();
  codes([&](int64_t k) {
    const long double here = square(k);
    index = here < nearest ? k : index;
    nearest = here < nearest ? here : nearest;
  });
  return index;
}

// f(candidate) for each candidate of vector n whose t may reach `low`, through the parts of the codes.
template <class F>
void candidates_of(const NearestProblem& p, const Scratch* parts, int64_t n, float low, F f) {
  for (int64_t part = 0; part < p.parts; ++part) {
    const Vector& vector = parts[part].vectors[n];
    for (int32_t c = 0; c < vector.count; ++c)
      if (vector.candidates[c].high >= low) f(vector.candidates[c]);
  }
}

// The largest low of vector n among the parts of the codes; NaN where any code may be the nearest.
float low_of(const NearestProblem& p, const Scratch* parts, int64_t n) {
  float low = -__FLT_MAX__, left_out = -__builtin_inff();
  bool all = false;
  for (int64_t part = 0; part < p.parts; ++part) {
    const Vector& vector = parts[part].vectors[n];
    all |= vector.count == kAll;
    low = vector.low > low ? vector.low : low;
    left_out = vector.left_out_high > left_out ? vector.left_out_high : left_out;
  }
  return all || left_out >= low ? __builtin_nanf("") : low;
}

// The index of vector n: its only candidate, or the nearest by distances in float64.
template <class T>
int64_t decide(const NearestProblem& p, const Codebook& book, const Scratch* parts, int64_t n, float low) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x) + parts[0].vectors[n].x;
  const auto code = [&](int64_t k) { return code_of<C>(p, book, k, parts[0].code); };
  const auto candidates = [&](auto f) { candidates_of(p, parts, n, low, f); };
  int64_t count = 0, likely = 0;
  float highest = -__builtin_inff();
  candidates([&](const Candidate& c) {
    likely = c.high > highest ? c.code : likely;
    highest = c.high > highest ? c.high : highest;
    ++count;
  });
  if (count < 2) return likely;
  C* vector = static_cast<C*>(parts[0].vector);
  if (p.d_stride == 1)
    for (int64_t i = 0; i < p.d; ++i) vector[i] = C(x[i]);
  else
    for (int64_t i = 0; i < p.d; ++i) vector[i] = C(x[i * p.d_stride]);
  // A distance in float32 is off by (D + 2) u of it (Higham, section 3.1), or by D 2^-126 where squares underflow; the
  // square of the vector's length by (D + 5) u. As t = (|a|^2 - s^2 |x - e|^2) / 2, the distance of one code bounds the
  // largest t from below. That rules out all candidates whose `high` is less, before their distances are computed.
  const bool brief = sizeof(C) == sizeof(float) && (count > 4 || p.d >= 256);
  const float slack = 1 + 0x1.1p-23f * float(p.d + 4), tiny = 0x1p-100f;
  float rough = __builtin_inff(), first = 0;
  double smallest_t = -__builtin_inf();
  const auto nearer = [&](float here) {
    const double square = parts[0].vectors[n].square * (1 - 0x1p-23 * double(p.d + 6));
    rough = here;
    smallest_t = (square - (double(slack) * here + tiny)) / 2 - tiny;
  };
  if (brief) {
    nearer(first = distance<Floats>(vector, code(likely), p.d, book.scale));
    count = 0;
    candidates([&](const Candidate& c) { count += c.high >= smallest_t; });
    if (count == 1) return likely;
  }
  double nearest = __builtin_inf();
  int64_t index = 0;
  candidates([&](const Candidate& c) {
    if constexpr (sizeof(C) == sizeof(float))
      if (brief) {
        if (c.high < smallest_t) return;
        const float here = c.code == likely ? first : distance<Floats>(vector, code(c.code), p.d, book.scale);
        if (here > rough * slack + tiny) return;
        if (here < rough) nearer(here);
      }
    const double here = distance<Doubles>(vector, code(c.code), p.d, book.scale);
    ++parts[0].state->counts.distances;
    index = here < nearest ? c.code : index;
    nearest = here < nearest ? here : nearest;
  });
  if (!out_of_range<C>(nearest)) return index;
  const auto codes = [&](auto f) { candidates([&](const Candidate& c) { f(c.code); }); };
  return nearest_of_any_size<C>(p, book, vector, parts[0].code, index, codes);
}

// The arithmetic that sums squared differences: sum + (column - row)^2.
struct SquaredDifference {
  using Element = double;
  using Register = Doubles;
  static Doubles add(Doubles sum, double row, Doubles column) {
    const Doubles away = column - row;
    return sum + away * away;
  }
};

// Writes the indices of the first `listed` vectors of s.list, each compared in float64 with all codes that don't repeat
// another. Distances of codes that aren't finite are NaN, which is never the smallest.
template <class T>
void compare_all(const NearestProblem& p, const Codebook& book, const Scratch& s, int64_t listed) {
  using C = typename Compute<T>::type;
  using All = Sums<SquaredDifference>;
  using Indices = decltype(Doubles{} < Doubles{});
  const int64_t max_vectors = p.max_block / 2;  // float64 numbers take the room of two float32
  const uint8_t* repeats = __atomic_load_n(&book.repeats, __ATOMIC_ACQUIRE);
  double *columns = reinterpret_cast<double*>(s.columns), *nearest = reinterpret_cast<double*>(s.low);
  int64_t* index = reinterpret_cast<int64_t*>(s.length);
  for (int64_t begin = 0; begin < listed; begin += max_vectors) {
    const int64_t count = min(max_vectors, listed - begin), padded = ceil_div(count, All::kColumns) * All::kColumns;
    for (int64_t n = 0; n < padded; ++n) {
      const T* x = static_cast<const T*>(p.x) + s.list[begin + min(n, count - 1)]->x;
      double* column = columns + n / All::kColumns * All::kColumns * p.d + n % All::kColumns;
      for (int64_t i = 0; i < p.d; ++i) column[i * All::kColumns] = double(C(x[i * p.d_stride])) * book.scale;
      nearest[n] = __builtin_inf(), index[n] = 0;
    }
    for (int64_t k = 0; k < p.k;) {
      int64_t codes[kTileRows] = {}, filled = 0;
      for (; filled < kTileRows && k < p.k; ++k) {
        if ((repeats && repeats[k]) || (k && same_code<C>(p, book, k, k - 1))) continue;
        const C* code = code_of<C>(p, book, k, s.code);
        for (int64_t i = 0; i < p.d; ++i) s.wide[filled * p.d + i] = double(code[i]) * book.scale;
        codes[filled++] = k;
      }
      s.state->counts.distances += count * filled;
      for (; filled < kTileRows; ++filled) s.wide[filled * p.d] = __builtin_nan("");
      for (int64_t n = 0; n < padded; n += All::kColumns) {
        All sums = {};
        sums.add(p.d, s.wide, p.d, 1, columns + n * p.d);
        for (int v = 0; v < kTileRegisters; ++v) {
          const int64_t lane = n + v * All::kLanes;
          Doubles best = load(nearest + lane);
          Indices found;
          memcpy(&found, index + lane, sizeof found);
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r) {
            const Indices nearer = sums.of[r][v] < best;
            best = nearer ? sums.of[r][v] : best;
            found = nearer ? Indices{} + codes[r] : found;
          }
          store(best, nearest + lane);
          store(found, index + lane);
        }
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      const Vector& vector = *s.list[begin + n];
      if (out_of_range<C>(nearest[n])) {
        C* whole = static_cast<C*>(s.vector);
        for (int64_t i = 0; i < p.d; ++i) whole[i] = C(static_cast<const T*>(p.x)[vector.x + i * p.d_stride]);
        const auto codes = [&](auto f) {
          for (int64_t k = 0; k < p.k; ++k)
            if (!(repeats && repeats[k])) f(k);
        };
        index[n] = nearest_of_any_size<C>(p, book, whole, s.code, index[n], codes);
      }
      p.out[vector.out] = index[n];
    }
  }
}

// Writes the indices of a block, counted through all codebooks, from what each part of the codes has found. memory: the
// scratches of the parts, side by side.
template <class T>
void finish(const NearestProblem& p, int64_t block, char* memory) {
  Scratch parts[kMaxParts];
  char* at = memory;
  for (int64_t part = 0; part < p.parts; ++part) parts[part] = carve(p, at, at);
  const Codebook& book = p.books[block / p.blocks];
  const Scratch& s = parts[0];
  const int64_t vectors = count_of(vectors_in(p, block % p.blocks));
  int64_t listed = 0;
  for (int64_t n = 0; n < vectors; ++n) {
    Vector& vector = s.vectors[n];
    if (vector.same) continue;
    const float low = low_of(p, parts, n);
    if (low == low)
      p.out[vector.out] = decide<T>(p, book, parts, n, low);
    else
      listed = list<T>(p, vector, s.list, listed);
  }
  compare_all<T>(p, book, s, listed);
  for (int64_t n = 0; n < vectors; ++n)
    if (s.vectors[n].same) p.out[s.vectors[n].out] = p.out[s.vectors[n].same->out];
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
