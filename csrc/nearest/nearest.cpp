// The nearest code: the tile with the codes as its rows and vectors as its columns, then a certificate.
//
// |x - e|^2 is smallest where t = a.b - |b|^2 / 2 is largest, with a = s (x - p), b = s (e - p) for any pivot p and
// scale s. With p in the middle of the codes an offset of the data cancels before it can do harm. The tile computes
// t in float32 for a group of kRows codes, whose error is at most B; so no t is above score + B, and the largest is
// no less than the highest score - B of all. Codes for which the former reaches the latter may be the nearest, no
// other can be: where they are several, they are compared by their differences in float64.
//
// What the numbers are must not decide what a search takes:
// - Codes that equal an earlier one would all be candidates. They are looked for once many are, in time K D, and left
//   out (repeats.h).
// - One code far away must not widen the bound of those beside it: in a group of such different lengths each code has a
//   bound of its own. Those beyond what float32 holds are left out; that they aren't the nearest is shown by one bound
//   for all, from the least of their lengths.
// - A row beyond what float32 holds is taken in units of its own.
// - Where codes stand in the order of their lengths, those that come first would all be candidates until a better one
//   comes. A pass that most rows are lost to begins again with what some codes from everywhere rule out.
// - Rows with too many candidates after the last pass (of many codes at one distance, or nearly) are compared with all
//   codes in float64, many at a time; of equal rows one is. A pass ends once most rows are lost to it.
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
// - Overflow: E <= 2^30, as longer codes are left out. A row of A > 2^60 has a times a power of two for a, so that
//   2^59 <= A < 2^60, and the same |b|^2 / 2: off by E^2 / 2 <= 2^29 E at the most, which is inside the 1.02 of a bound
//   of at least 2^37 E. Where even its differences from p overflow, or D > 2^17, it is compared with all codes.
//
// Where the CPU multiplies int8 and bf16, coarse passes come first, with the same certificate. With the roundings a^,
// b^ of a~, b~ and the lengths r, R of a~ - a^ and of the longest b~ - b^ (both differences are exact in float32):
//   |a~.b~ - a^.b^| <= |(a~ - a^).b^| + |a~.(b~ - b^)| <= r (E + R) + A R,
// which is added to B. Rows with too many candidates then take the next pass, and so does every row of the next block
// when those were many. int8 counts in units of a vector's largest component / 127, rounded up to bf16's eight bits, so
// that up to 127 units are exact in float32. Sums of products are exact too and rounded three times after, not D + 1
// times, which makes up for a^ and b^ being longer, by a factor 1 + D^(1/2) / 254 at the most.

#include "nearest/nearest.h"

#include "nearest/decide.h"
#include "nearest/match.h"

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

// The next groups of codes, prepared before or now, but for codes that are known to repeat another.
template <class Product, class C>
Chunk chunk_of(const Problem& p, const Codebook& book, bool ready, Span groups, const Scratch& s) {
  const uint8_t* repeats = s.state->repeats;
  Chunk chunk{groups.begin, count_of(groups), s.groups, s.codes, repeats};
  if (ready) {
    chunk.groups = groups_of(book) + groups.begin;
    chunk.codes = codes_of(p, book) + groups.begin * group_size(p.d, Product::kPer);
    if (!repeats) return chunk;
    memcpy(s.groups, chunk.groups, size_t(chunk.count) * sizeof(Group));
    chunk.groups = s.groups;
  } else {
    prepare<Product, C>(p, book, groups, s.codes, s.groups, s.code);
  }
  for (int64_t k = groups.begin * kRows; repeats && k < least(groups.end * kRows, p.k); ++k)
    if (repeats[k]) s.groups[k / kRows - groups.begin].bias[k % kRows] = -__builtin_inff();
  return chunk;
}

// Finds the candidates of the listed rows among groups of codes. Once more than half of the rows are lost, all are:
// what follows will do better. If it scouts, some codes from everywhere raise the rows' lows first: codes that come
// early are no candidates then because better ones come late.
template <class T, class Product>
void pass(const Problem& p, const Codebook& book, Span groups, int64_t count, bool scouts, const Scratch& s) {
  using C = typename Compute<T>::type;
  const int64_t steps = ceil_div(p.d, Product::kPer);
  State& state = *s.state;
  state.repeats = __atomic_load_n(&book.repeats, __ATOMIC_ACQUIRE);
  state.spare = count < kManyRows ? count : count / 64, state.lost = 0;
  const auto open = [&](int64_t n) { return n < count && s.list[n]->square == s.list[n]->square && !s.list[n]->count; };
  for (int64_t n = 0; n < count; n += kTile) {
    const int width = count - n > kLanes ? kTile : kLanes;
    float* columns = s.columns + n * steps;
    pack_rows<T, Product>(
        p, book, s.list + n, least(kTile, count - n), width, columns, s.length + n, s.residual + n, s.unit + n);
    for (int r = 0; r < width; ++r)  // where no candidates are wanted, nothing reaches NaN, whatever the bound
      s.low[n + r] = open(n + r) ? -__FLT_MAX__ : __builtin_nanf("");
  }
  const bool ready = book.prepared && book.per == Product::kPer;
  float far = __builtin_inff();
  const auto futile = [&] { return 2 * state.lost > count; };
  const auto with_match = [&](const Chunk& chunk, int64_t n, auto f) {
    if (count - n > kLanes) return f(Match<Product, kVectors>{p, chunk, s, n});
    return f(Match<Product, 1>{p, chunk, s, n});
  };
  constexpr int64_t kScouts = 8;  // groups
  for (int64_t scout = 0; scouts && scout < kScouts; ++scout) {
    const int64_t group = groups.begin + count_of(groups) * (2 * scout + 1) / (2 * kScouts);
    const Chunk chunk = chunk_of<Product, C>(p, book, ready, {group, group + 1}, s);
    Ahead nothing{};
    for (int64_t n = 0; n < count; n += kTile) with_match(chunk, n, [&](const auto& match) { match.raise(nothing); });
    state.work.products += count * kRows * 4 / Product::kPer;
  }
  for (int64_t first = groups.begin; first < groups.end && !futile(); first += p.chunk) {
    const Span here{first, least(first + p.chunk, groups.end)}, later{here.end, least(here.end + p.chunk, groups.end)};
    Chunk chunk = chunk_of<Product, C>(p, book, ready, here, s);
    for (int64_t g = 0; g < chunk.count; ++g) far = chunk.groups[g].far < far ? chunk.groups[g].far : far;
    const bool fetch = p.blocks == 1 && count > kTile;  // several blocks find them in the last cache
    Ahead next = ahead<C, Product>(p, book, ready, fetch ? later : Span{}, chunk.count * ceil_div(count, kTile));
    for (int64_t n = 0; n < count && !futile(); n += kTile) {
      const auto matched = [&](const auto& match) {
        match.raise(next);
        return match.collect(book);
      };
      while (!with_match(chunk, n, matched)) chunk = chunk_of<Product, C>(p, book, ready, here, s);
      state.work.products += least(kTile, count - n) * chunk.count * kRows * 4 / Product::kPer;
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    Row& row = *s.list[n];
    if (row.square != row.square) continue;
    row.low = s.low[n];
    if (futile()) row.count = kAll;
    // t <= |a| |b| - |b|^2 / 2, which falls as |b| grows past |a|
    const float length = row.square < 0 ? __builtin_inff() : 1.02f * s.length[n];
    row.far = far == __builtin_inff() ? -far : length < far ? far * (length - far / 2) : __builtin_inff();
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
  for (int64_t n = 0; n < count; ++n) {
    Row& row = *(s.list[n] = s.rows + n);
    row.low = -__FLT_MAX__, row.far = -__builtin_inff(), row.count = kAll, row.same = nullptr;
    row.candidates = s.candidates + n * p.candidates;
  }
  bool scouts = false;
  for (int64_t at = p.d <= kMostChannels ? per : 0; left && at;) {
    with_product(at, [&](auto product) { pass<T, decltype(product)>(p, book, groups, left, scouts, s); });
    const int64_t listed = left;
    left = 0;
    for (int64_t n = 0; n < listed; ++n)
      if (s.list[n]->count == kAll) left = list<T>(p, *s.list[n], s.list, left);
    const bool failed = 2 * left > count;
    if (failed && !scouts && count >= kManyRows) {
      scouts = true;  // and once more
      continue;
    }
    if (failed) pays = most(1, at / 2);
    at /= 2;
  }
  return pays;
}

// Units count parts of the codes, then blocks, then codebooks. Where parts are several, each has its thread's memory.
int64_t search(const Problem& p, Span units, void* scratch) {
  char *memory = static_cast<char*>(scratch), *end;
  const Scratch s = carve(p, memory, end);
  int64_t per = p.per;
  s.state->work = {};
  with_type(p.type, [&](auto element) {
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t part = unit % p.parts, block = unit / p.parts % p.blocks, book = unit / p.parts / p.blocks;
      per = search_part<decltype(element)>(p, p.books[book], block, part, per, s);
      if (p.parts > 1) continue;
      const int64_t before = s.state->work.distances;
      finish<decltype(element)>(p, unit, memory);
      // Many ties, if few for each row: the next block had better know of repeats.
      const bool many = s.state->work.distances - before > 2 * p.block;
      if (many && p.block >= kManyRows) p.books[book].find_repeats(p.books[book]);
    }
  });
  const Work& work = s.state->work;
  if (p.work) {
    __atomic_fetch_add(&p.work->products, work.products, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p.work->candidates, work.candidates, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p.work->distances, work.distances, __ATOMIC_RELAXED);
  }
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
