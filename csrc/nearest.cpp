// The nearest code: the tile with a running-maximum epilogue, then a certificate.
//
// |x - e|^2 is smallest where t = a.b - |b|^2 / 2 is largest, with a = s (x - p), b = s (e - p) for any pivot p and
// scale s. With p in the middle of the codes an offset of the data cancels before it can do harm. The tile computes
// t in float32; every code whose score is within twice the error bound B of the best score may be the nearest, no
// other can be, and those few are compared by their differences in float64.
//
// The bound. u = 2^-24, A and E the lengths of the packed (rounded) a~ and of the longest b~, s a power of two.
// - One rounding in x - p and one in e - p (in float64, then to float32: u (1 + 2^-28)):
//   |a~ - a| <= u |a|, |b~ - b| <= u' |b|. So a~.b~ is off by at most (2u + O(u^2)) A E, and |b~|^2 / 2 by
//   (1 + O(u)) u E^2; rounding it to float32 adds u E^2 / 2.
// - A float32 sum of the bias and D products, each product and each sum rounded once at most, in any order, is off by
//   at most g (E^2 / 2 + A E), g = (D+1) u / (1 - (D+1) u) (Higham, Accuracy and Stability, section 3.1).
// - The threshold best - 2B is itself rounded: u (A E + E^2 / 2), and A and E are computed in float32: a factor
//   1 + (D+2) u at most.
// Together B <= (D+6) u E (A + E/2) (1 + O(D u)); for D <= 2^17 the factor 1.02 covers the O(D u).
// - Underflow: s brings E into [2^-23, 2^20] (else B is infinite), so B >= D u E^2 / 2 >= D 2^-71 plus 2^-47 A, and the
//   underflow of components and products, D 2^-125 (1 + A) even where subnormals are flushed, is inside the 1.02.
// - Overflow: where A > 2^60 or isn't a number, B is infinite. An infinite B sends the row to all codes in float64.
// If k is the nearest and j has the best score, score_k >= t_k - B >= t_j - B >= score_j - 2B: k is among those compared.

//
// Where the CPU multiplies bf16, a coarse pass comes first, with the same certificate. With the roundings a^, b^ of a~,
// b~ and the lengths r, R of a~ - a^ and of the longest b~ - b^ (both differences are exact in float32):
//   |a~.b~ - a^.b^| <= |(a~ - a^).b^| + |a~.(b~ - b^)| <= r (E + R) + A R,
// which is added to B. Rows with too many candidates then take the float32 pass, and so does every row of the next
// block when those were many.

#include "nearest.h"

#include "floats.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int kCandidates = 12;

// The arithmetic that x - p needs to round only once: float32 up to float32, else float64.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

int64_t pair_steps(const Problem& p) { return (p.d + 1) / 2; }
int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : least(x, high); }
bool finite(double x) { return __builtin_isfinite(x); }

template <class C>
bool all_finite(const C* x, int64_t count) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !__builtin_isfinite(x[i]);
  return !bad;
}

// Sizes for the caches: a chunk of codes stays in L2 while a block of rows passes by.
void plan(Problem& p, int64_t threads) {
  p.tiles = ceil_div(p.k, kTile);
  // A group's lanewise maxima are kept, so a look at a lane costs group x 2 distances: balance that with the
  // number of groups to look through.
  p.group = clamp(int64_t(__builtin_sqrt(double(p.k) / (4 * (p.d + 36)))), 1, p.tiles);
  p.chunk = clamp(65536 / (p.d * kTile), p.group, p.tiles) / p.group * p.group;
  p.coarse = kHasPairs && p.rows >= 256;
  const int64_t fair = ceil_div(p.rows * p.num_books, threads);
  p.block = ceil_div(least(clamp(98304 / p.d, 192, 768), fair), kRows) * kRows;
}

// to[i * width + n] = scale * (vector n [i] - pivot[i]) for `count` vectors; vector(n) points to the n-th.
template <class T, class C, class Vector>
void centre_into(float* to, int width, int64_t count, Vector vector, int64_t stride, int64_t d, const C* pivot, C scale) {
  constexpr int kPart = 64;
  typedef float Four __attribute__((vector_size(16)));
  for (int64_t n = 0; n < count; n += 4)
    for (int64_t first = 0; first < d; first += kPart) {
      float part[4][kPart];
      const int lines = int(least(4, count - n)), length = int(least(kPart, d - first));
      for (int l = 0; l < lines; ++l) {
        const T* x = vector(n + l) + first * stride;
        const C* p = pivot + first;
        if (stride == 1)
          for (int i = 0; i < length; ++i) part[l][i] = float((C(x[i]) - p[i]) * scale);
        else
          for (int i = 0; i < length; ++i) part[l][i] = float((C(x[i * stride]) - p[i]) * scale);
      }
      float* out = to + first * width + n;
      int i = 0;
      for (; lines == 4 && i + 4 <= length; i += 4) {  // transpose 4 x 4
        Four a, b, c, e;
        memcpy(&a, &part[0][i], 16), memcpy(&b, &part[1][i], 16);
        memcpy(&c, &part[2][i], 16), memcpy(&e, &part[3][i], 16);
        const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Four ce = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce2 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
        const Four rows[4] = {
            __builtin_shufflevector(ab, ce, 0, 1, 4, 5), __builtin_shufflevector(ab, ce, 2, 3, 6, 7),
            __builtin_shufflevector(ab2, ce2, 0, 1, 4, 5), __builtin_shufflevector(ab2, ce2, 2, 3, 6, 7)};
        for (int j = 0; j < 4; ++j) memcpy(out + (i + j) * width, &rows[j], 16);
      }
      for (; i < length; ++i)
        for (int l = 0; l < lines; ++l) out[i * width + l] = part[l][i];
    }
}

// Pairs of bf16 of each column's consecutive numbers, and the squared lengths of what the rounding left out.
void pair_up(const float* from, int width, int64_t d, float* to, float* residuals) {
  for (int64_t i = 0; i < d; i += 2, from += 2 * width, to += width)
    for (int n = 0; n < width; ++n) {
      uint32_t bits[2] = {};
      for (int j = 0; j < 2; ++j) {
        const float value = i + j < d ? from[j * width + n] : 0;
        const uint32_t exact = __builtin_bit_cast(uint32_t, value);
        bits[j] = (exact + 0x7fff + (exact >> 16 & 1)) & 0xffff0000;
        const float left = value - __builtin_bit_cast(float, bits[j]);
        residuals[n] += left * left;
      }
      to[n] = __builtin_bit_cast(float, bits[0] >> 16 | bits[1]);
    }
}

// ---------------------------------------------------------------------------------------------------- codes

// pivot: the mean of up to 128 finite codes; scale: 2^-exponent of the largest component about it.
// Any pivot and scale are right, these make the bound small.
template <class C>
void centre(const Problem& p, Codebook& book) {
  const C* codes = static_cast<const C*>(book.codes);
  C* pivot = static_cast<C*>(book.pivot);
  const int64_t step = ceil_div(p.k, 128);
  C count = 0, largest = 0;
  for (int64_t i = 0; i < p.d; ++i) pivot[i] = 0;
  for (int64_t k = 0; k < p.k; k += step) {
    const C* code = codes + k * p.d;
    if (!all_finite(code, p.d)) continue;
    count += 1;
    for (int64_t i = 0; i < p.d; ++i) pivot[i] += (code[i] - pivot[i]) * (1 / count);
  }
  for (int64_t k = 0; k < p.k; k += step)
    for (int64_t i = 0; i < p.d; ++i) {
      const C away = codes[k * p.d + i] - pivot[i], distance = away < 0 ? -away : away;
      largest = distance > largest && finite(distance) ? distance : largest;
    }
  const int limit = sizeof(C) == sizeof(float) ? 126 : 1000;
  const int exponent = largest > 0 ? __builtin_ilogb(largest) : 0;
  book.scale = __builtin_ldexp(1, int(clamp(-exponent, -limit, limit)));
}

// Codes of the tiles into tile order. Infinitely far codes get the score -inf, as do the missing ones of the last tile.
template <class C>
Packed pack(const Problem& p, const Codebook& book, Span tiles) {
  Packed found;
  for (int64_t first = tiles.begin * kTile; first < tiles.end * kTile; first += kTile) {
    float* packed = book.packed + first * p.d;
    const C *codes = static_cast<const C*>(book.codes) + first * p.d, *pivot = static_cast<const C*>(book.pivot);
    const int64_t count = least(kTile, p.k - first);
    double norms[kTile] = {};
    if (count < kTile) memset(packed, 0, sizeof(float) * kTile * p.d);
    centre_into<C>(packed, kTile, count, [&](int64_t k) { return codes + k * p.d; }, 1, p.d, pivot, C(book.scale));
    for (int64_t i = 0; i < p.d; ++i)
      for (int k = 0; k < kTile; ++k) norms[k] += double(packed[i * kTile + k]) * packed[i * kTile + k];
    for (int64_t k = 0; k < kTile; ++k) {
      bool out = k >= count;
      if (!finite(norms[k]) && !all_finite(codes + k * p.d, p.d)) {
        for (int64_t i = 0; i < p.d; ++i) {
          if (found.first_nan < 0 && codes[k * p.d + i] != codes[k * p.d + i]) found.first_nan = first + k;
          packed[i * kTile + k] = 0;
        }
        out = true;
      }
      book.bias[first + k] = out ? -__builtin_inff() : float(-norms[k] / 2);
      const float reach = float(__builtin_sqrt(norms[k]));
      if (!out && reach > found.reach) found.reach = reach;
    }
    if (!p.coarse) continue;
    float residuals[kTile] = {};
    pair_up(packed, kTile, p.d, book.pairs + first * pair_steps(p), residuals);
    for (const float residual : residuals)
      if (residual > found.residual * found.residual) found.residual = __builtin_sqrtf(residual);
  }
  return found;
}

// ----------------------------------------------------------------------------------------------------- rows

struct Candidate {
  float score;
  int32_t lane;  // group * kLanes + lane: the codes of that lane in the group's tiles
};

struct Row {
  int64_t x, out;          // where it is, where its index goes
  float best, tolerance;   // best score so far; 2B
  int32_t count;           // of candidates; kAll: every code
  Candidate candidates[kCandidates];
};
constexpr int32_t kAll = -1;

struct Scratch {
  Row* rows;       // (block)
  float* packed;   // (block / kRows, steps, kRows)
  float* single;   // (D, kRows) rows in float32 that are to be paired
  Vec* maxima;     // (groups in a chunk, kRows)
  double* exact;   // (D) one row as it is given
};

template <class T>
T* take(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
  return taken;
}

Scratch carve(const Problem& p, char*& at) {
  Scratch s;
  s.rows = take<Row>(at, p.block);
  s.packed = take<float>(at, p.block * p.d);
  s.single = take<float>(at, p.coarse ? kRows * p.d : 0);
  s.maxima = take<Vec>(at, ceil_div(p.chunk, p.group) * kRows);
  s.exact = take<double>(at, p.d);
  return s;
}

int64_t scratch(const Problem& p) {
  char* end = nullptr;
  carve(p, end);
  return end - static_cast<char*>(nullptr);
}

// Where rows begin .. begin + count of a codebook are.
void locate(const Problem& p, const Codebook& book, int64_t begin, int64_t count, Row* rows) {
  int64_t at[64], rest = begin, x = book.x, out = book.out;
  for (int64_t a = p.num_axes - 1; a >= 0; --a) {
    at[a] = rest % p.axes[a].size;
    rest /= p.axes[a].size;
    x += at[a] * p.axes[a].x_stride;
    out += at[a] * p.axes[a].out_stride;
  }
  for (int64_t n = 0; n < count; ++n) {
    rows[n].x = x;
    rows[n].out = out;
    for (int64_t a = p.num_axes - 1; a >= 0; --a) {
      const Axis& axis = p.axes[a];
      x += axis.x_stride;
      out += axis.out_stride;
      if (++at[a] < axis.size) break;
      x -= axis.size * axis.x_stride;
      out -= axis.size * axis.out_stride;
      at[a] = 0;
    }
  }
}

// Asks for rows that are needed soon.
template <class T>
void prefetch(const Problem& p, const Row* rows, int64_t count) {
  const int64_t line = 64 / int64_t(sizeof(T));
  const T* x = static_cast<const T*>(p.x);
  for (int64_t r = 0; r < count; r += p.d_stride == 1 || count == 1 ? 1 : count - 1)
    for (int64_t i = 0; i < p.d; i += p.d_stride == 1 ? line : 1) __builtin_prefetch(x + rows[r].x + i * p.d_stride);
}

// Up to kRows rows into tile order, and their tolerances. With `pairs` they are rounded to bf16 pairs there.
template <class T>
void pack_rows(const Problem& p, const Codebook& book, Row* rows, int64_t count, float* packed, float* pairs) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x);
  const C* pivot = static_cast<const C*>(book.pivot);
  const C scale = C(book.scale);
  bool adjacent = count == kRows;
  for (int64_t r = 1; r < count; ++r) adjacent &= rows[r].x == rows[0].x + r;
  if (count < kRows) memset(packed, 0, sizeof(float) * kRows * p.d);
  if (adjacent)
    for (int64_t i = 0; i < p.d; ++i)
      for (int r = 0; r < kRows; ++r)
        packed[i * kRows + r] = float((C(x[rows[0].x + i * p.d_stride + r]) - pivot[i]) * scale);
  else
    centre_into<T>(packed, kRows, count, [&](int64_t r) { return x + rows[r].x; }, p.d_stride, p.d, pivot, scale);
  float norms[kRows] = {};
  for (int64_t i = 0; i < p.d; ++i)
    for (int r = 0; r < kRows; ++r) norms[r] += packed[i * kRows + r] * packed[i * kRows + r];

  float residuals[kRows] = {};
  if (pairs) pair_up(packed, kRows, p.d, pairs, residuals);

  const double reach = book.reach, slope = 1.02 * 0x1p-24 * double(p.d + 6) * reach;
  const bool bounded = p.d <= 1 << 17 && (reach == 0 || (reach >= 0x1p-23 && reach <= 0x1p20));
  for (int64_t r = 0; r < count; ++r) {
    rows[r].best = -__builtin_inff();
    const double length = __builtin_sqrt(double(norms[r])), residual = __builtin_sqrt(double(residuals[r]));
    double tolerance = slope * (2 * length + reach);
    if (pairs) tolerance = 1.02 * (tolerance + 2 * (residual * (reach + book.residual) + length * book.residual));
    rows[r].tolerance = float(tolerance);
    rows[r].count = bounded && norms[r] <= 0x1p120f ? 0 : kAll;
  }
}

// Drops the candidates that a better score has ruled out since.
void prune(Row& row) {
  int32_t kept = 0;
  for (int32_t c = 0; c < row.count; ++c)
    if (row.candidates[c].score >= row.best - row.tolerance) row.candidates[kept++] = row.candidates[c];
  if (row.count != kAll) row.count = kept;
}

void add(Row& row, Candidate candidate) {
  if (row.count == kCandidates) prune(row);
  if (row.count == kCandidates) row.count = kAll;
  if (row.count != kAll) row.candidates[row.count++] = candidate;
}

// The highest scores of each lane over a group's tiles.
template <class Product>
void score(int64_t steps, const float* codes, const float* bias, int64_t tiles, const float* rows, Vec* maxima) {
  for (int r = 0; r < kRows; ++r) maxima[r] = Vec{} - __builtin_inff();
  for (int64_t t = 0; t < tiles; ++t) {
    tile<Product>(steps, rows, codes + t * kTile * steps, bias + t * kTile,
                  [&](int r, const Vec* scores) { maxima[r] = max(maxima[r], max(scores[0], scores[1])); });
    asm volatile("" ::: "memory");  // else the compiler keeps the maxima in registers that it doesn't have
  }
}

// The lanes of a chunk that reach a row's threshold.
void scan(Row& row, const Vec* maxima, int64_t groups, int64_t first_group) {
  Vec most = maxima[0];
  for (int64_t g = 1; g < groups; ++g) most = max(most, maxima[g * kRows]);
  const float best = highest(most);
  if (best > row.best) row.best = best;
  const float threshold = row.best - row.tolerance;
  for (int64_t base = 0; base < groups; base += 64) {
    uint64_t hits = 0;  // groups with such a lane, found without a branch: none could be foreseen
    for (int64_t g = base; g < least(groups, base + 64); ++g)
      hits |= uint64_t{at_least(maxima[g * kRows], threshold) != 0} << (g - base);
    for (; hits; hits &= hits - 1) {
      const int64_t g = base + __builtin_ctzll(hits);
      for (uint32_t lanes = at_least(maxima[g * kRows], threshold); lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        add(row, {maxima[g * kRows][lane], int32_t((first_group + g) * kLanes + lane)});
      }
    }
  }
}

struct Found {
  double distance;
  int64_t index;
};

template <class C>
double distance(const double* x, const C* e, int64_t d) {
  constexpr int kWide = sizeof(Wide) / sizeof(double);
  typedef C Codes __attribute__((vector_size(kWide * sizeof(C))));
  Wide sums = {};
  int64_t i = 0;
  for (; i + kWide <= d; i += kWide) {
    Wide row;
    Codes code;
    memcpy(&row, x + i, sizeof row);
    memcpy(&code, e + i, sizeof code);
    row -= __builtin_convertvector(code, Wide);
    sums += row * row;
  }
  double sum = total(sums);
  for (; i < d; ++i) sum += (x[i] - e[i]) * (x[i] - e[i]);
  return sum;
}

// A row's index: the nearest of its candidates by differences in float64.
template <class T>
int64_t decide(const Problem& p, const Codebook& book, Row& row, double* exact) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x) + row.x;
  const C* codes = static_cast<const C*>(book.codes);
  if (p.d_stride == 1)
    for (int64_t i = 0; i < p.d; ++i) exact[i] = C(x[i]);
  else
    for (int64_t i = 0; i < p.d; ++i) exact[i] = C(x[i * p.d_stride]);
  if (row.count == kAll && !all_finite(exact, p.d)) return 0;
  if (row.count == kAll && book.first_nan >= 0) return book.first_nan;
  const auto nearest = [&](int64_t first, int64_t end, int64_t step) {
    Found found{__builtin_inf(), 0};
    for (int64_t k = first; k < end; k += step) {
      const double here = distance(exact, codes + k * p.d, p.d);
      found.index = here < found.distance ? k : found.index;
      found.distance = here < found.distance ? here : found.distance;
    }
    return found;
  };
  if (row.count == kAll) return nearest(0, p.k, 1).index;
  prune(row);
  Found best{__builtin_inf(), 0};
  for (int32_t c = 0; c < row.count; ++c) {
    const int64_t lane = row.candidates[c].lane, first = lane / kLanes * p.group * kTile + lane % kLanes;
    const Found found = nearest(first, least(p.k, first + p.group * kTile), kLanes);
    if (found.distance < best.distance || (found.distance == best.distance && found.index < best.index)) best = found;
  }
  return best.index;
}

// Finds the candidates of `count` rows.
template <class T, class Product>
void pass(const Problem& p, const Codebook& book, Row* rows, int64_t count, const Scratch& s) {
  constexpr bool kPairs = Product::kPairs;
  const int64_t steps = kPairs ? pair_steps(p) : p.d;
  const float* codes = kPairs ? book.pairs : book.packed;
  for (int64_t first = 0; first < p.tiles; first += p.chunk) {
    const int64_t tiles = least(p.chunk, p.tiles - first), groups = ceil_div(tiles, p.group);
    for (int64_t n = 0; n < count; n += kRows) {
      float* packed = s.packed + n * steps;
      const int64_t width = least(kRows, count - n);
      if (first == 0) {
        pack_rows<T>(p, book, rows + n, width, kPairs ? s.single : packed, kPairs ? packed : nullptr);
        if (n + kRows < count) prefetch<T>(p, rows + n + kRows, least(kRows, count - n - kRows));
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t t = first + g * p.group;
        score<Product>(steps, codes + t * kTile * steps, book.bias + t * kTile, least(p.group, first + tiles - t), packed,
                       s.maxima + g * kRows);
      }
      for (int64_t r = 0; r < width; ++r)
        if (rows[n + r].count != kAll) scan(rows[n + r], s.maxima + r, groups, first / p.group);
    }
  }
}

// The indices of a block of rows; returns whether the coarse pass paid.
template <class T>
bool search_block(const Problem& p, const Codebook& book, int64_t begin, bool coarse, const Scratch& s) {
  const int64_t count = least(p.block, p.rows - begin);
  int64_t certified = 0;  // rows that come first and need no float32 pass
  locate(p, book, begin, count, s.rows);
  if (book.first_nan >= 0) {
    for (int64_t n = 0; n < count; ++n) s.rows[n].count = kAll;
  } else {
    if (coarse) {
      pass<T, Pair>(p, book, s.rows, count, s);
      for (int64_t n = 0; n < count; ++n)
        if (s.rows[n].count != kAll) {
          const Row row = s.rows[n];
          s.rows[n] = s.rows[certified];
          s.rows[certified++] = row;
        }
    }
    if (certified < count) pass<T, Single>(p, book, s.rows + certified, count - certified, s);
  }
  for (int64_t n = 0; n < count; ++n) p.out[s.rows[n].out] = decide<T>(p, book, s.rows[n], s.exact);
  return certified >= count / 2;
}

bool search(const Problem& p, Span blocks, void* memory) {
  char* at = static_cast<char*>(memory);
  const Scratch s = carve(p, at);
  const int64_t per_book = ceil_div(p.rows, p.block);
  bool coarse = p.coarse;
  with_type(p.type, [&](auto element) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b)
      coarse &= search_block<decltype(element)>(p, p.books[b / per_book], b % per_book * p.block, coarse, s);
  });
  return coarse;
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel{
    kTile,
    plan,
    [](const Problem& p, Codebook& book) { p.type == Type::f64 ? centre<double>(p, book) : centre<float>(p, book); },
    [](const Problem& p, const Codebook& book, Span tiles) {
      return p.type == Type::f64 ? pack<double>(p, book, tiles) : pack<float>(p, book, tiles);
    },
    scratch,
    search,
};

}  // namespace vqfast::VQFAST_ISA
