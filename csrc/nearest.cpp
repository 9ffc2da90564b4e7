// The nearest code: the tile with the codes as its rows and vectors as its columns, then a certificate.
//
// |x - e|^2 is smallest where t = a.b - |b|^2 / 2 is largest, with a = s (x - p), b = s (e - p) for any pivot p and
// scale s. With p in the middle of the codes an offset of the data cancels before it can do harm. The tile computes
// t in float32 for a group of kRows codes, whose error is at most B; so no t is above score + B, and the largest is
// no less than the highest score - B of all. Codes for which the former reaches the latter may be the nearest, no
// other can be: where they are several, they are compared by their differences in float64.
//
// The codes come in the order in which they are stored, so that a few vectors cost little more than their product: a
// chunk of codes is centred and rounded in cache just before a block of vectors meets it. Where blocks are several,
// that is done once, for all of them.
//
// The bound. u = 2^-24, A and E the lengths of the centred (rounded) a~ and of a group's longest b~, s a power of two.
// - One rounding in x - p and one in e - p (in float64, then to float32: u (1 + 2^-28)):
//   |a~ - a| <= u |a|, |b~ - b| <= u' |b|. So a~.b~ is off by at most (2u + O(u^2)) A E, and |b~|^2 / 2 by
//   (1 + O(u)) u E^2; its float32 sum adds D u E^2 / 2.
// - A float32 sum of that and D products, each product and each sum rounded once at most, in any order, is off by at
//   most g (E^2 / 2 + A E), g = (D+1) u / (1 - (D+1) u) (Higham, Accuracy and Stability, section 3.1).
// - Score + B and score - B are themselves rounded: u (A E + E^2 / 2 + B). A, E and B are computed in float32: a
//   factor 1 + (D+8) u at most.
// Together B <= (D+4) u E (A + E) (1 + O(D u)); for D <= 2^17 the factor 1.02 covers the O(D u).
// - Underflow: E counts as 2^-23 at the least, so B >= D u E^2 >= D 2^-70 plus D 2^-47 A, and the underflow of
//   components and products, D 2^-125 (1 + A) + D 2^-125 E even where subnormals are flushed, is inside the 1.02.
// - Overflow: where A > 2^60 or isn't a number, E > 2^20 or D > 2^17, the row goes to all codes in float64.
//
// Where the CPU multiplies int8 and bf16, coarse passes come first, with the same certificate. With the roundings a^,
// b^ of a~, b~ and the lengths r, R of a~ - a^ and of the longest b~ - b^ (both differences are exact in float32):
//   |a~.b~ - a^.b^| <= |(a~ - a^).b^| + |a~.(b~ - b^)| <= r (E + R) + A R,
// which is added to B. Rows with too many candidates then take the next pass, and so does every row of the next block
// when those were many. int8 counts in units of a vector's largest component / 127, rounded up to bf16's eight bits, so
// that up to 127 units are exact in float32. Sums of products are exact too and rounded three times after, not D + 1
// times, which makes up for a^ and b^ being longer, by a factor 1 + D^(1/2) / 254 at the most.

#include "nearest.h"

#include "codes.h"
#include "rows.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Sizes for the caches: a block of vectors stays in L2, and beside it a chunk of codes with its scores. Every thread
// has as many blocks. Few vectors stay together, and threads share the codes.
void plan(Problem& p, int64_t threads, bool share_codes) {
  constexpr int64_t kFew = 192;
  // Few rows aren't worth the rounding of codes to int8; long ones leave too many candidates.
  const bool integers = p.d >= 32 && p.d <= kMostIntegers && p.k >= 256 && p.rows >= 96;
  p.per = least(kMostPer, integers ? 4 : p.d >= 8 ? 2 : 1);
  const int64_t beside = p.beside ? most(131072 / (p.beside * kTile), 1) * kTile : 2048;
  const int64_t limit = least(beside, clamp((p.per == 4 ? 524288 : 98304) / p.d, 256, 2048));
  const int64_t fair = ceil_div(p.rows * p.num_books, threads);
  const int64_t tiles = ceil_div(p.rows, kTile);
  const bool few = share_codes && fair < kFew;
  p.groups = ceil_div(p.k, kRows);
  p.chunk = clamp(24576 / (p.d * kRows), 1, least(128, p.groups));
  p.tile = kTile;
  p.blocks = ceil_div(p.rows, few ? limit : least(limit, ceil_div(fair, kTile) * kTile));
  if (!few) p.blocks = least(ceil_div(ceil_div(p.blocks * p.num_books, threads) * threads, p.num_books), tiles);
  p.block = ceil_div(tiles, p.blocks) * kTile;
  p.parts = few ? clamp(threads / (p.blocks * p.num_books), 1, least(kMostParts, p.groups)) : 1;
  p.keep = p.k < 128 * (p.d + 8);  // of many codes few groups matter, and short ones are soon scored again
  // Comparing them takes less than another pass.
  p.candidates = most(p.per == 4 ? clamp(p.d / 4, 24, 120) : 24, clamp(p.k / 64, 24, 56));
}

// A thread's memory.
struct Scratch {
  int64_t* first_nan;                // the first code with a NaN, or -1: every finite row's answer
  Row* rows;                         // (block)
  Row** list;                        // (block) those that a pass is for
  Candidate* candidates;             // (block, candidates)
  float *columns;                    // (block / kTile, steps, kTile) rows
  float *low, *length, *residual;    // (block) of the columns: low as above, lengths of a~ and of a~ - a^
  float* unit;                       // (block) of the columns: of integers
  float* codes;                      // (chunk, group_size)
  Group* groups;                     // (chunk)
  float *scores, *high;              // (chunk, kRows, kTile) and their maxima (chunk, kTile)
  void *row, *code;                  // (D) one row as it is given, float64 or float32; room for a code
};

template <class T>
T* take(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
  return taken;
}

Scratch carve(const Problem& p, char* begin, char*& at) {
  at = begin;
  Scratch s;
  s.first_nan = take<int64_t>(at, 1);
  s.rows = take<Row>(at, p.block);
  s.list = take<Row*>(at, p.block);
  s.candidates = take<Candidate>(at, p.block * p.candidates);
  s.columns = take<float>(at, p.block * p.d);
  s.low = take<float>(at, p.block);
  s.length = take<float>(at, p.block);
  s.residual = take<float>(at, p.block);
  s.unit = take<float>(at, p.block);
  s.codes = take<float>(at, p.chunk * group_size(p.d, 1));
  s.groups = take<Group>(at, p.chunk);
  s.scores = take<float>(at, (p.keep ? p.chunk : 1) * kRows * kTile);
  s.high = take<float>(at, p.chunk * kTile);
  s.row = take<double>(at, p.d + kLanes);
  s.code = take<double>(at, p.d);
  return s;
}

int64_t scratch(const Problem& p) {
  char* end;
  carve(p, nullptr, end);
  return end - static_cast<char*>(nullptr);
}

void add(const Problem& p, Row& row, Candidate candidate, float low) {
  if (row.count == p.candidates) {  // drop those that another has ruled out since
    row.count = 0;
    for (int64_t c = 0; c < p.candidates; ++c)
      if (row.candidates[c].high >= low) row.candidates[row.count++] = row.candidates[c];
    if (row.count == p.candidates) row.count = kAll;
  }
  if (row.count != kAll) row.candidates[row.count++] = candidate;
}

// Scores of a group of codes (kRows, kV vectors of columns), and the highest of each column.
template <class Product, int kV>
[[gnu::noinline]] void score(
    int64_t steps, const float* codes, const Group& group, const float* columns, const float* unit, float* scores,
    float* high) {
  constexpr bool kIntegers = Product::kPer == 4;
  Sums<Product, kRows, kV> sums;
  Vec most[kV];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v)
      if constexpr (kIntegers)
        sums.of[r][v] = Product::begin(group.start[r]);
      else
        sums.of[r][v] = group.bias[r] - Vec{};
  for (int64_t step = 0; step < steps; step += kLanes)
    sums.add(least(kLanes, steps - step), codes + step * kRows, kLanes, 1, columns + step * kV * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      if constexpr (kIntegers)
        sums.of[r][v] = Product::value(sums.of[r][v]) * load(unit + v * kLanes) * group.unit[r] + group.bias[r];
      if (scores) store(sums.of[r][v], scores + (r * kV + v) * kLanes);
      most[v] = r ? max(most[v], sums.of[r][v]) : sums.of[r][v];
    }
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) store(most[v], high + v * kLanes);
}

// Memory that is wanted soon, fetched in equal steps between which there is work to do.
struct Ahead {
  const char *at, *end;
  int64_t step;
  void advance() {
    for (const char* to = at + least(step, end - at); at < to; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// A chunk of codes, of which `first` is the first.
struct Chunk {
  int64_t first, count;  // in groups
  const Group* groups;
  const float* codes;
};

// Candidates among a chunk's codes for kV vectors of columns from n on.
template <class Product, int kV>
void match(const Problem& p, const Chunk& chunk, int64_t n, const Scratch& s, Ahead& next) {
  const int64_t steps = ceil_div(p.d, Product::kPer), size = group_size(p.d, Product::kPer), groups = chunk.count;
  const auto score_group = [&](int64_t g, float* scores) {
    score<Product, kV>(
        steps, chunk.codes + g * size, chunk.groups[g], s.columns + n * steps, s.unit + n, scores,
        s.high + g * kV * kLanes);
  };
  const auto scores_of = [&](int64_t g) { return p.keep ? s.scores + g * kRows * kV * kLanes : nullptr; };
  for (int64_t g = 0; g < groups; ++g) {
    next.advance();
    score_group(g, scores_of(g));
  }
  for (int v = 0; v < kV; ++v) {
    const int64_t lane = n + v * kLanes;
    const Vec length = load(s.length + lane), residual = load(s.residual + lane);
    const auto bound = [&](int64_t g) {
      const Bound& of = chunk.groups[g].bound;
      return length * of.of_length + (residual * of.of_residual + of.own);
    };
    Vec low = load(s.low + lane);
    for (int64_t g = 0; g < groups; ++g) {
      float* high = s.high + (g * kV + v) * kLanes;
      const Vec most = load(high), error = bound(g);
      low = max(most - error, low);
      store(most + error, high);
    }
    store(low, s.low + lane);
    for (int64_t g = 0; g < groups; ++g) {
      if (!at_least(load(s.high + (g * kV + v) * kLanes), low)) continue;
      if (!p.keep) score_group(g, s.scores);
      const float* scores = p.keep ? scores_of(g) : s.scores;
      const Vec error = bound(g);
      float errors[kLanes];
      store(error, errors);
      // A bit for each lane of each row. How many there are can't be foretold: one loop errs once.
      constexpr int kWords = ceil_div(kRows * kLanes, 64);
      uint64_t found[kWords] = {};
      int left = 0;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const uint64_t lanes = at_least(load(scores + (r * kV + v) * kLanes) + error, low);
        found[r * kLanes / 64] |= lanes << r * kLanes % 64;
        left += __builtin_popcountll(lanes);
      }
      for (; left; --left) {
        int word = kWords - 1;
        for (int w = kWords - 1; w >= 0; --w) word = found[w] ? w : word;
        const int bit = word * 64 + __builtin_ctzll(found[word]), r = bit / kLanes, at = bit % kLanes;
        found[word] &= found[word] - 1;
        const float high = scores[(r * kV + v) * kLanes + at] + errors[at];
        add(p, *s.list[lane + at], {high, int32_t((chunk.first + g) * kRows + r)}, low[at]);
      }
    }
  }
}

// The squared distance of two vectors, summed in V's lanes.
template <class V, class C>
auto distance(const C* x, const C* e, int64_t d) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]), kWays = 4;  // sums that don't wait for each other
  typedef C Numbers __attribute__((vector_size(kLanes * sizeof(C))));
  V sums[kWays] = {};
  const auto add = [&](int64_t i, V& sum) {
    Numbers row, code;
    memcpy(&row, x + i, sizeof row);
    memcpy(&code, e + i, sizeof code);
    const V away = __builtin_convertvector(row, V) - __builtin_convertvector(code, V);
    sum += away * away;
  };
  int64_t i = 0;
  for (; i + kWays * kLanes <= d; i += kWays * kLanes)
    for (int way = 0; way < kWays; ++way) add(i + way * kLanes, sums[way]);
  for (; i + kLanes <= d; i += kLanes) add(i, sums[0]);
  auto sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < d; ++i) sum += (decltype(sum)(x[i]) - e[i]) * (decltype(sum)(x[i]) - e[i]);
  return sum;
}

// A row's index, of what each part of the codes has found for it: the only candidate, or the nearest by differences in
// float64.
template <class T>
int64_t decide(const Problem& p, const Codebook& book, const Scratch* parts, int64_t n) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x) + parts[0].rows[n].x;
  const auto code = [&](int64_t k) { return code_of<C>(p, book, k, parts[0].code); };
  float low = -__FLT_MAX__;
  int64_t count = 0, first_nan = -1, likely = 0;
  bool all = false;
  for (int64_t part = 0; part < p.parts; ++part) {
    const Row& row = parts[part].rows[n];
    all |= row.count == kAll;
    low = row.low > low ? row.low : low;
    if (first_nan < 0) first_nan = *parts[part].first_nan;
  }
  const auto candidates = [&](auto f) {
    for (int64_t part = 0; part < p.parts; ++part) {
      const Row& row = parts[part].rows[n];
      for (int32_t c = 0; c < row.count; ++c)
        if (row.candidates[c].high >= low) f(row.candidates[c].code, row.candidates[c].high);
    }
  };
  if (!all) {
    float highest = -__builtin_inff();
    candidates([&](int64_t k, float high) {
      likely = high > highest ? k : likely;
      highest = high > highest ? high : highest;
      ++count;
    });
    if (count == 1 && first_nan < 0) return likely;
  }
  C* row = static_cast<C*>(parts[0].row);
  if (p.d_stride == 1)
    for (int64_t i = 0; i < p.d; ++i) row[i] = C(x[i]);
  else
    for (int64_t i = 0; i < p.d; ++i) row[i] = C(x[i * p.d_stride]);
  if ((all || first_nan >= 0) && !all_finite(row, p.d)) return 0;
  if (first_nan >= 0) return first_nan;
  // A distance in float32 is off by (D + 2) u of it (Higham, section 3.1), or by D 2^-126 where squares underflow; the
  // square of the row's length by (D + 5) u. With t = (|a|^2 - s^2 |x - e|^2) / 2 the distance of one code rules out
  // those whose t can't come up to its own, most of them by what the first pass has found.
  const bool brief = sizeof(C) == sizeof(float) && (all || count > 4 || p.d >= 256) && p.d <= 1 << 17;
  const float slack = 1 + 0x1.1p-23f * float(p.d + 4), tiny = 0x1p-100f;
  float rough = __builtin_inff(), first = 0;
  double least_t = -__builtin_inf();
  const auto nearer = [&](float here) {
    const double square = parts[0].rows[n].square * (1 - 0x1p-23 * double(p.d + 6));
    rough = here;
    least_t = (square - book.scale * book.scale * (double(slack) * here + tiny)) / 2 - tiny;
  };
  if (brief && !all) {
    nearer(first = distance<Vec>(row, code(likely), p.d));
    count = 0;
    candidates([&](int64_t, float high) { count += high >= least_t; });
    if (count == 1) return likely;
  }
  double nearest = __builtin_inf();
  int64_t index = 0;
  const auto compare = [&](int64_t k, float high) {
    if constexpr (sizeof(C) == sizeof(float))
      if (brief) {
        if (high < least_t) return;
        const float here = !all && k == likely ? first : distance<Vec>(row, code(k), p.d);
        if (here > rough * slack + tiny) return;
        if (here < rough) nearer(here);
      }
    const double here = distance<Wide>(row, code(k), p.d);
    index = here < nearest ? k : index;
    nearest = here < nearest ? here : nearest;
  };
  if (all)
    for (int64_t k = 0; k < p.k; ++k) compare(k, __builtin_inff());
  else
    candidates(compare);
  return index;
}

// Groups of codes, prepared or as they are, in so many steps.
template <class C, class Product>
Ahead ahead(const Problem& p, const Codebook& book, bool ready, Span groups, int64_t steps) {
  const auto at = [&](int64_t group) {
    if (ready) return reinterpret_cast<const char*>(codes_of(p, book) + group * group_size(p.d, Product::kPer));
    return static_cast<const char*>(book.codes) + least(group * kRows, p.k) * p.d * int64_t(sizeof(C));
  };
  const char *begin = at(groups.begin), *end = at(groups.end);
  return {begin, end, ceil_div(end - begin, steps * 64) * 64};
}

// Finds the candidates of the listed rows among groups of codes.
template <class T, class Product>
void pass(const Problem& p, const Codebook& book, Span groups, int64_t count, const Scratch& s) {
  using C = typename Compute<T>::type;
  const int64_t steps = ceil_div(p.d, Product::kPer);
  for (int64_t n = 0; n < count; n += kTile) {
    const int width = count - n > kLanes ? kTile : kLanes;
    float* columns = s.columns + n * steps;
    pack_rows<T, Product>(
        p, book, s.list + n, least(kTile, count - n), width, columns, s.length + n, s.residual + n, s.unit + n);
    for (int r = 0; r < width; ++r)  // where there's no row, nothing reaches NaN, whatever the bound
      s.low[n + r] = n + r < count ? -__FLT_MAX__ : __builtin_nanf("");
  }
  const bool ready = book.prepared && book.per == Product::kPer;
  bool bounded = true;
  for (int64_t first = groups.begin; first < groups.end; first += p.chunk) {
    const int64_t here = least(p.chunk, groups.end - first);
    Chunk chunk{first, here, s.groups, s.codes};
    if (ready) {
      chunk.groups = groups_of(book) + first;
      chunk.codes = codes_of(p, book) + first * group_size(p.d, Product::kPer);
    } else {
      prepare<Product, C>(p, book, {first, first + here}, s.codes, s.groups, s.code);
    }
    for (int64_t g = 0; g < here; ++g) {
      bounded &= chunk.groups[g].bounded;
      if (*s.first_nan < 0) *s.first_nan = chunk.groups[g].first_nan;
    }
    const Span later{first + here, least(first + here + p.chunk, groups.end)};
    const bool far = p.blocks == 1 && count > kTile;  // several blocks find them in the last cache
    Ahead next = ahead<C, Product>(p, book, ready, far ? later : Span{}, here * ceil_div(count, kTile));
    for (int64_t n = 0; n < count; n += kTile)
      (count - n > kLanes ? match<Product, kVectors> : match<Product, 1>)(p, chunk, n, s, next);
  }
  for (int64_t n = 0; n < count; ++n) {
    s.list[n]->low = s.low[n];
    if (!bounded) s.list[n]->count = kAll;
  }
}

// f(Product{}) of the one that multiplies so many numbers a step.
template <class F>
void with_product(int64_t per, F f) {
#if defined(__AVX512BF16__)
  if (per == 4) return f(Quad{});
  if (per == 2) return f(Pair{});
#endif
  f(Single{});
}

// The candidates of a block of rows in a part of the codes; returns `per` of a first pass that pays.
template <class T>
int64_t search_part(
    const Problem& p, const Codebook& book, int64_t block, int64_t part, int64_t per, const Scratch& s) {
  const Span rows = rows_of(p, block), groups = part_of(p.groups, p.parts, part);
  const int64_t count = count_of(rows);
  int64_t left = count, pays = per;
  locate(p, book, rows.begin, count, s.rows);
  *s.first_nan = -1;
  for (int64_t n = 0; n < count; ++n) {
    s.list[n] = s.rows + n;
    s.rows[n].candidates = s.candidates + n * p.candidates;
  }
  for (int64_t at = per; left && at; at /= 2) {
    with_product(at, [&](auto product) { pass<T, decltype(product)>(p, book, groups, left, s); });
    const int64_t listed = left;
    left = 0;
    for (int64_t n = 0; n < listed; ++n)
      if (s.list[n]->count == kAll) s.list[left++] = s.list[n];
    if (2 * left > count) pays = most(1, at / 2);
  }
  return pays;
}

// Indices of a block's rows; the memory is that of its parts.
template <class T>
void finish(const Problem& p, int64_t block, char* memory) {
  Scratch parts[kMostParts];
  char* at = memory;
  for (int64_t part = 0; part < p.parts; ++part) parts[part] = carve(p, at, at);
  const Span rows = rows_of(p, block % p.blocks);
  for (int64_t n = 0; n < rows.end - rows.begin; ++n)
    p.out[parts[0].rows[n].out] = decide<T>(p, p.books[block / p.blocks], parts, n);
}

// Units count parts of the codes, then blocks, then codebooks. Where parts are several, each has its thread's memory.
int64_t search(const Problem& p, Span units, void* scratch) {
  char *memory = static_cast<char*>(scratch), *end;
  const Scratch s = carve(p, memory, end);
  int64_t per = p.per;
  with_type(p.type, [&](auto element) {
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t part = unit % p.parts, block = unit / p.parts % p.blocks, book = unit / p.parts / p.blocks;
      per = search_part<decltype(element)>(p, p.books[book], block, part, per, s);
      if (p.parts == 1) finish<decltype(element)>(p, unit, memory);
    }
  });
  return per;
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel{
    plan,
    [](const Problem& p, Codebook& book, void* room) {
      p.type == Type::f64 ? centre<double>(p, book, room) : centre<float>(p, book, room);
    },
    prepared,
    [](const Problem& p, const Codebook& book, Span groups, void* room) {
      with_product(book.per, [&](auto product) {
        using Product = decltype(product);
        float* codes = codes_of(p, book) + groups.begin * group_size(p.d, Product::kPer);
        Group* to = groups_of(book) + groups.begin;
        p.type == Type::f64 ? prepare<Product, double>(p, book, groups, codes, to, room)
                            : prepare<Product, float>(p, book, groups, codes, to, room);
      });
    },
    scratch,
    search,
    [](const Problem& p, int64_t block, void* memory) {
      with_type(p.type, [&](auto element) { finish<decltype(element)>(p, block, static_cast<char*>(memory)); });
    },
};

}  // namespace vqfast::VQFAST_ISA
