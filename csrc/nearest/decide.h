// How nearest.cpp decides between codes: by their differences in float64.
#pragma once

#include "nearest/scratch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The squared distance of two vectors in a codebook's units, summed in V's lanes.
template <class V, class C>
auto distance(const C* x, const C* e, int64_t d, double scale) {
  using Number = decltype(total(V{}));
  constexpr int kLanes = sizeof(V) / sizeof(Number), kWays = 4;  // sums that don't wait for each other
  typedef C Numbers __attribute__((vector_size(kLanes * sizeof(C))));
  const Number unit = Number(scale);
  V sums[kWays] = {};
  const auto add = [&](int64_t i, V& sum) {
    Numbers row, code;
    memcpy(&row, x + i, sizeof row);
    memcpy(&code, e + i, sizeof code);
    const V away = (__builtin_convertvector(row, V) - __builtin_convertvector(code, V)) * unit;
    sum += away * away;
  };
  int64_t i = 0;
  for (; i + kWays * kLanes <= d; i += kWays * kLanes)
    for (int way = 0; way < kWays; ++way) add(i + way * kLanes, sums[way]);
  for (; i + kLanes <= d; i += kLanes) add(i, sums[0]);
  Number sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < d; ++i) {
    const Number away = (Number(x[i]) - Number(e[i])) * unit;
    sum += away * away;
  }
  return sum;
}

// Squared distances in float64 say nothing where they over- or underflow.
template <class C>
bool says_nothing(double square) {
  return sizeof(C) == sizeof(double) && !(square > 0x1p-960 && square < __builtin_inf());
}

// The index of the code nearest to row among those that codes(f) calls f with, in rising order: by a type whose
// exponents hold the squares of all float64 numbers. `index` is what was found without, which a code that equals the row
// confirms.
template <class C, class F>
int64_t of_any_size(const Problem& p, const Codebook& book, const C* row, void* room, int64_t index, F codes) {
  const auto square = [&](int64_t k) {
    const C* code = code_of<C>(p, book, k, room);
    long double sum = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      const long double away = (long double)row[i] - (long double)code[i];
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

// f(a candidate) for those of row n that none has ruled out, part by part of the codes; returns the low that does.
template <class F>
void candidates_of(const Problem& p, const Scratch* parts, int64_t n, float low, F f) {
  for (int64_t part = 0; part < p.parts; ++part) {
    const Row& row = parts[part].rows[n];
    for (int32_t c = 0; c < row.count; ++c)
      if (row.candidates[c].high >= low) f(row.candidates[c]);
  }
}

// The largest low of a row's parts; NaN where its candidates may be any codes.
float low_of(const Problem& p, const Scratch* parts, int64_t n) {
  float low = -__FLT_MAX__, far = -__builtin_inff();
  bool all = false;
  for (int64_t part = 0; part < p.parts; ++part) {
    const Row& row = parts[part].rows[n];
    all |= row.count == kAll;
    low = row.low > low ? row.low : low;
    far = row.far > far ? row.far : far;
  }
  return all || far >= low ? __builtin_nanf("") : low;
}

// A row's index among its candidates: the only one, or the nearest by differences in float64.
template <class T>
int64_t decide(const Problem& p, const Codebook& book, const Scratch* parts, int64_t n, float low) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x) + parts[0].rows[n].x;
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
  C* row = static_cast<C*>(parts[0].row);
  if (p.d_stride == 1)
    for (int64_t i = 0; i < p.d; ++i) row[i] = C(x[i]);
  else
    for (int64_t i = 0; i < p.d; ++i) row[i] = C(x[i * p.d_stride]);
  // A distance in float32 is off by (D + 2) u of it (Higham, section 3.1), or by D 2^-126 where squares underflow; the
  // square of the row's length by (D + 5) u. With t = (|a|^2 - s^2 |x - e|^2) / 2 the distance of one code rules out
  // those whose t can't come up to its own, most of them by what the first pass has found.
  const bool brief = sizeof(C) == sizeof(float) && (count > 4 || p.d >= 256);
  const float slack = 1 + 0x1.1p-23f * float(p.d + 4), tiny = 0x1p-100f;
  float rough = __builtin_inff(), first = 0;
  double least_t = -__builtin_inf();
  const auto nearer = [&](float here) {
    const double square = parts[0].rows[n].square * (1 - 0x1p-23 * double(p.d + 6));
    rough = here;
    least_t = (square - (double(slack) * here + tiny)) / 2 - tiny;
  };
  if (brief) {
    nearer(first = distance<Vec>(row, code(likely), p.d, book.scale));
    count = 0;
    candidates([&](const Candidate& c) { count += c.high >= least_t; });
    if (count == 1) return likely;
  }
  double nearest = __builtin_inf();
  int64_t index = 0;
  candidates([&](const Candidate& c) {
    if constexpr (sizeof(C) == sizeof(float))
      if (brief) {
        if (c.high < least_t) return;
        const float here = c.code == likely ? first : distance<Vec>(row, code(c.code), p.d, book.scale);
        if (here > rough * slack + tiny) return;
        if (here < rough) nearer(here);
      }
    const double here = distance<Wide>(row, code(c.code), p.d, book.scale);
    ++parts[0].state->work.distances;
    index = here < nearest ? c.code : index;
    nearest = here < nearest ? here : nearest;
  });
  if (!says_nothing<C>(nearest)) return index;
  const auto codes = [&](auto f) { candidates([&](const Candidate& c) { f(c.code); }); };
  return of_any_size<C>(p, book, row, parts[0].code, index, codes);
}

// sum + (column - row)^2
struct Away {
  using Element = double;
  using Vector = Wide;
  static Wide add(Wide sum, double row, Wide column) {
    const Wide away = column - row;
    return sum + away * away;
  }
};

// Indices of the listed rows, which are compared in float64 with all codes that don't repeat another. Codes that aren't
// finite are nearer than none.
template <class T>
void compare_all(const Problem& p, const Codebook& book, const Scratch& s, int64_t listed) {
  using C = typename Compute<T>::type;
  using All = Sums<Away>;
  using Indices = decltype(Wide{} < Wide{});
  const int64_t most_rows = p.block / 2;  // in memory that held as many float32
  const uint8_t* repeats = __atomic_load_n(&book.repeats, __ATOMIC_ACQUIRE);
  double *columns = reinterpret_cast<double*>(s.columns), *nearest = reinterpret_cast<double*>(s.low);
  int64_t* index = reinterpret_cast<int64_t*>(s.length);
  for (int64_t begin = 0; begin < listed; begin += most_rows) {
    const int64_t count = least(most_rows, listed - begin), padded = ceil_div(count, All::kColumns) * All::kColumns;
    for (int64_t n = 0; n < padded; ++n) {
      const T* x = static_cast<const T*>(p.x) + s.list[begin + least(n, count - 1)]->x;
      double* column = columns + n / All::kColumns * All::kColumns * p.d + n % All::kColumns;
      for (int64_t i = 0; i < p.d; ++i) column[i * All::kColumns] = double(C(x[i * p.d_stride])) * book.scale;
      nearest[n] = __builtin_inf(), index[n] = 0;
    }
    for (int64_t k = 0; k < p.k;) {
      int64_t codes[kRows] = {}, filled = 0;
      for (; filled < kRows && k < p.k; ++k) {
        if ((repeats && repeats[k]) || (k && same_code<C>(p, book, k, k - 1))) continue;
        const C* code = code_of<C>(p, book, k, s.code);
        for (int64_t i = 0; i < p.d; ++i) s.wide[filled * p.d + i] = double(code[i]) * book.scale;
        codes[filled++] = k;
      }
      s.state->work.distances += count * filled;
      for (; filled < kRows; ++filled) s.wide[filled * p.d] = __builtin_nan("");
      for (int64_t n = 0; n < padded; n += All::kColumns) {
        All sums = {};
        sums.add(p.d, s.wide, p.d, 1, columns + n * p.d);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t lane = n + v * All::kLanes;
          Wide best = load(nearest + lane);
          Indices found;
          memcpy(&found, index + lane, sizeof found);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
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
      const Row& row = *s.list[begin + n];
      if (says_nothing<C>(nearest[n])) {
        C* whole = static_cast<C*>(s.row);
        for (int64_t i = 0; i < p.d; ++i) whole[i] = C(static_cast<const T*>(p.x)[row.x + i * p.d_stride]);
        const auto codes = [&](auto f) {
          for (int64_t k = 0; k < p.k; ++k)
            if (!(repeats && repeats[k])) f(k);
        };
        index[n] = of_any_size<C>(p, book, whole, s.code, index[n], codes);
      }
      p.out[row.out] = index[n];
    }
  }
}

// Indices of a block's rows, of what each part of the codes has found for them.
template <class T>
void finish(const Problem& p, int64_t block, char* memory) {
  Scratch parts[kMostParts];
  char* at = memory;
  for (int64_t part = 0; part < p.parts; ++part) parts[part] = carve(p, at, at);
  const Codebook& book = p.books[block / p.blocks];
  const Scratch& s = parts[0];
  const int64_t rows = count_of(rows_of(p, block % p.blocks));
  int64_t listed = 0;
  for (int64_t n = 0; n < rows; ++n) {
    Row& row = s.rows[n];
    if (row.same) continue;
    const float low = low_of(p, parts, n);
    if (low == low)
      p.out[row.out] = decide<T>(p, book, parts, n, low);
    else
      listed = list<T>(p, row, s.list, listed);
  }
  compare_all<T>(p, book, s, listed);
  for (int64_t n = 0; n < rows; ++n)
    if (s.rows[n].same) p.out[s.rows[n].out] = p.out[s.rows[n].same->out];
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
