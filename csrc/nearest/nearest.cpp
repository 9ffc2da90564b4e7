// The nearest code: the tile with codes as its rows and vectors as its columns, then a certificate.
//
// |x - e|^2 is smallest where t = a.b - |b|^2 / 2 is largest, with a = s (x - p), b = s (e - p) for any pivot p and
// scale s. With p in the middle of the codes an offset of the data cancels before it can do harm. The tile computes a
// score in float32, which is t up to an error B, for a group of kGroupRows codes. No t is above its score + B, and the
// largest t is no less than the largest score - B of all codes. Only codes whose score + B reaches that may be the
// nearest: the candidates. Where a vector has several, they are compared by their distances in float64.
//
// The time of a search must not depend on what the numbers are:
// - Codes that equal an earlier one would all be candidates. They are looked for once there are many candidates, in
//   time K D, and left out (host_repeats.h).
// - One code far away must not widen the bound of those beside it: in a group of very different lengths each code has a
//   bound of its own. Codes longer than float32 products allow aren't multiplied; one bound for all of them, from the
//   smallest of their lengths, shows that they aren't the nearest.
// - A vector longer than float32 products allow has a scale of its own.
// - Where codes are stored in the order of their lengths, early ones would all be candidates until a better one comes.
//   A pass that loses most vectors is repeated as one that scouts: codes from everywhere raise the lower bounds first.
// - Vectors with too many candidates after the last pass (many codes at nearly one distance) are compared with all
//   codes in float64, many vectors at a time, equal ones once. A pass ends once it has lost most vectors.
//
// Up to eight vectors are compared with the codes directly (direct.h), with bounds of another kind.
//
// The codes are read in the order in which they are stored, so that a few vectors cost little more than their product.
// A chunk of codes is centred and rounded in cache just before a block of vectors meets it. Where there are several
// blocks, that is done once, for all of them.
//
// The bound. u = 2^-24; a~ and b~ are the centred and rounded a and b; A is |a~|, E the longest |b~| of a group.
// - x - p is rounded once, and e - p is (in float64, then to float32: u (1 + 2^-28)):
//   |a~ - a| <= u |a|, |b~ - b| <= u' |b|. So a~.b~ is off by at most (2u + O(u^2)) A E, and |b~|^2 / 2 by
//   (1 + O(u)) u E^2; its float32 sum adds D u E^2 / 2.
// - A float32 sum of that and D products, each product and each sum rounded once at most, in any order, is off by at
//   most g (E^2 / 2 + A E), g = (D+1) u / (1 - (D+1) u) (Higham, Accuracy and Stability, section 3.1).
// - Score + B and score - B are themselves rounded: u (A E + E^2 / 2 + B). A, E and B are computed in float32: a
//   factor 1 + (D+8) u at most.
// Together B <= (D+4) u E (A + E) (1 + O(D u)); for D <= 2^17 the factor 1.02 covers the O(D u).
// - Underflow: E counts as 2^-23 at least, so B >= D u E^2 >= D 2^-70 plus D 2^-47 A, and the underflow of
//   components and products, D 2^-125 (1 + A) + D 2^-125 E even where subnormals are flushed, is inside the 1.02.
// - Overflow: E <= 2^30, as longer codes aren't multiplied. A vector of A > 2^60 is multiplied by a power of two, so
//   that 2^59 <= A < 2^60, but |b|^2 / 2 stays: off by E^2 / 2 <= 2^29 E at most, which is inside the 1.02 of a bound
//   of at least 2^37 E. Where even its differences from p overflow, or D > 2^17, it is compared with all codes.
//
// Where the CPU multiplies int8 and bfloat16, coarse passes come first, with the same certificate; that of short
// vectors counts in integers (tally.h). With AVX2 it is one of int16, of which the CPU multiplies and adds as many as
// 1.6 times the float32 numbers. Tiles begin with bfloat16: they take half as many as int8, but it leaves an eighth of
// the error, and their looking through takes half as long.
// With the roundings a^, b^ of a~, b~, and r, R for |a~ - a^| and the longest |b~ - b^| (both differences are exact in
// float32):
//   |a~.b~ - a^.b^| <= |(a~ - a^).b^| + |a~.(b~ - b^)| <= r (E + R) + A R,
// which is added to B. Vectors with too many candidates then take the next pass, and so does every vector of the next
// block when those were many. int8 counts in units of a vector's largest component / 127, int16 in units of that / 2^m
// with D 2^(2m) <= 2^30, rounded up to the eight bits of bfloat16, so that integers times units are exact in float32.
// Sums of products are exact too and rounded three times after, not D + 1 times, which makes up for a^ and b^ being
// longer, by a factor 1 + D^(1/2) / 254 at most.

#include "nearest/nearest.h"

#include "nearest/decide.h"
#include "nearest/direct.h"
#include "nearest/match.h"
#include "nearest/tally.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Sizes blocks and chunks for the caches: a block of vectors stays in L2, and beside it a chunk of codes with its
// scores. Every thread has as many blocks. Few vectors stay in one block, and threads share the codes.
void plan(NearestProblem& p, int64_t threads, bool share_codes) {
  constexpr int64_t kFew = 192;
  constexpr bool kInt8 = kMaxPacking == 4;  // else the narrowest integers are int16
  constexpr bool kTiles = kGroupRows > kTileRows;  // bfloat16 is as fast as integers, or faster
  // Few vectors aren't worth the rounding of codes to integers. int8 leaves too many candidates of few channels.
  const bool integers = !kTiles && p.d >= (kInt8 ? 32 : 17) && p.d <= kMaxIntegerChannels && p.k >= 256 &&
                        p.vectors >= (kInt8 ? 32 : 64);
  p.direct = p.vectors <= kDirectVectors && p.precision != Precision::f64 && !p.divided && p.d <= kMaxChannels;
  // Of one channel, too many codes lie within what integers tell apart.
  p.tallied = p.d > 1 && p.d <= kMaxTalliedChannels && p.vectors >= (kInt8 ? 48 : 192) && p.k >= 64;
  p.packing = integers || p.tallied ? kMaxPacking : clamp(kMaxPacking / 2, 1, p.d >= 8 ? 2 : 1);
  const int64_t extra_limit =
      p.extra_channels ? max(131072 / (p.extra_channels * kTileColumns), 1) * kTileColumns : 2048;
  const int64_t limit = min(extra_limit, clamp((kTiles || p.packing == 4 ? 524288 : 98304) / p.d, 256, 2048));
  const int64_t share = ceil_div(p.vectors * p.num_books, threads);
  const int64_t tiles = ceil_div(p.vectors, kTileColumns);
  const bool few = share_codes && share < kFew;
  p.groups = ceil_div(p.k, kGroupRows);
  p.chunk = min(kTiles ? 12 : clamp(24576 / (p.d * kGroupRows), 1, 128), p.groups);  // tiles' scores stay in L1
  if (p.tallied) p.chunk = ceil_div(p.groups, ceil_div(p.groups, kMaxTallied));  // even ones
  p.tile = kTileColumns;
  p.blocks = ceil_div(p.vectors, few ? limit : min(limit, ceil_div(share, kTileColumns) * kTileColumns));
  if (!few) p.blocks = min(ceil_div(ceil_div(p.blocks * p.num_books, threads) * threads, p.num_books), tiles);
  p.max_block = ceil_div(tiles, p.blocks) * kTileColumns;
  p.parts = few ? clamp(threads / (p.blocks * p.num_books), 1, min(kMaxParts, p.groups)) : 1;
  p.keep_scores = p.k < 128 * (p.d + 8);  // of many codes few groups have candidates, and small D is soon scored again
  // Comparing so many takes less than another pass, if there is one. int16 leaves few.
  p.max_candidates = 24;
  if (kInt8 && p.packing > 1)
    p.max_candidates = max(p.packing == 4 ? clamp(p.d / 4, 24, 120) : 24, clamp(p.k / 64, 24, 56));
}

// The prefetch of some groups, prepared or as they are in the codebook, in so many steps.
template <class C, class Arithmetic>
CodePrefetch prefetch_of(const NearestProblem& p, const Codebook& book, bool ready, Span groups, int64_t steps) {
  const auto at = [&](int64_t group) {
    if (ready)
      return reinterpret_cast<const char*>(numbers_of(p, book) + group * group_size(p.d, Arithmetic::kPacking));
    return static_cast<const char*>(book.codes) + min(group * kGroupRows, p.k) * p.d * int64_t(sizeof(C));
  };
  const char *begin = at(groups.begin), *end = at(groups.end);
  return {begin, end, ceil_div(end - begin, steps * 64) * 64};
}

// A chunk of groups, prepared before or now. Codes that are known to equal an earlier one get the score -inf.
template <class Arithmetic, class C>
  requires(!kTallies<Arithmetic>)
Chunk chunk_of(const NearestProblem& p, const Codebook& book, bool ready, Span groups, const Scratch& s) {
  const uint8_t* repeats = s.state->repeats;
  Chunk chunk{groups.begin, count_of(groups), s.groups, s.codes, repeats};
  if (ready) {
    chunk.groups = groups_of(book) + groups.begin;
    chunk.codes = numbers_of(p, book) + groups.begin * group_size(p.d, Arithmetic::kPacking);
    if (!repeats) return chunk;
    memcpy(s.groups, chunk.groups, size_t(chunk.count) * sizeof(CodeGroup));
    chunk.groups = s.groups;
  } else {
    prepare<Arithmetic, C>(p, book, groups, s.codes, s.groups, s.code);
  }
  for (int64_t k = groups.begin * kGroupRows; repeats && k < min(groups.end * kGroupRows, p.k); ++k)
    if (repeats[k]) s.groups[k / kGroupRows - groups.begin].bias[k % kGroupRows] = -__builtin_inff();
  return chunk;
}

#if defined(VQFAST_INTEGERS)
template <class Arithmetic, class C>
  requires(kTallies<Arithmetic>)
Chunk chunk_of(const NearestProblem& p, const Codebook& book, bool ready, Span groups, const Scratch& s) {
  return tallied_chunk<C, Arithmetic::kChannels>(p, book, ready, groups, s);
}
#endif

// Finds the candidates of the first `count` listed vectors among groups of codes. Once more than half of the vectors
// are lost it gives all up, as the next pass will do better. If it scouts, some codes from everywhere raise the lower
// bounds first, so that early codes are no candidates where better ones come late.
template <class T, class Arithmetic>
void pass(const NearestProblem& p, const Codebook& book, Span groups, int64_t count, bool scouts, const Scratch& s) {
  using C = typename Compute<T>::type;
  const int64_t steps = kTallies<Arithmetic> ? p.d : words_of<Arithmetic>(p.d);
  State& state = *s.state;
#if defined(__AMX_TILE__)
  [[maybe_unused]] const std::conditional_t<kTiled<Arithmetic>, Tiles, int> tiles(kGroupRows);
#endif
  state.repeats = __atomic_load_n(&book.repeats, __ATOMIC_ACQUIRE);
  state.spare = count < kManyVectors ? count : count / 64, state.lost = 0;
  const auto open = [&](int64_t n) { return n < count && s.list[n]->square == s.list[n]->square && !s.list[n]->count; };
  for (int64_t n = 0; n < count; n += kTileColumns) {
    const int width = count - n > kLanes ? kTileColumns : kLanes;
    float* columns = s.columns + n * steps;
    pack_vectors<T, Arithmetic>(
        p, book, s.list + n, min(kTileColumns, count - n), width, columns, s.length + n, s.residual + n, s.unit + n);
    for (int r = 0; r < width; ++r)
      s.low[n + r] = open(n + r) ? -__FLT_MAX__ : __builtin_nanf("");
  }
  const bool ready = book.prepared && book.packing == Arithmetic::kPacking;
  float left_out = __builtin_inff();  // the smallest |b| of codes that aren't multiplied
  const auto futile = [&] { return 2 * state.lost > count; };
  const auto with_match = [&](const Chunk& chunk, int64_t n, auto f) {
    if (count - n > kLanes) return f(Match<Arithmetic, kTileRegisters>{p, chunk, s, n});
    return f(Match<Arithmetic, 1>{p, chunk, s, n});
  };
  constexpr int64_t kScouts = 8;  // groups
  for (int64_t scout = 0; scouts && scout < kScouts; ++scout) {
    const int64_t group = groups.begin + count_of(groups) * (2 * scout + 1) / (2 * kScouts);
    const Chunk chunk = chunk_of<Arithmetic, C>(p, book, ready, {group, group + 1}, s);
    CodePrefetch nothing{};
    for (int64_t n = 0; n < count; n += kTileColumns)
      with_match(chunk, n, [&](const auto& match) { match.raise(nothing); });
    state.counts.products += count * kGroupRows * 4 / Arithmetic::kPacking;
  }
  for (int64_t first = groups.begin; first < groups.end && !futile(); first += p.chunk) {
    const Span here{first, min(first + p.chunk, groups.end)}, later{here.end, min(here.end + p.chunk, groups.end)};
    Chunk chunk = chunk_of<Arithmetic, C>(p, book, ready, here, s);
    for (int64_t g = 0; g < chunk.count; ++g) {
      const float length = chunk.groups[g].left_out_length;
      left_out = length < left_out ? length : left_out;
    }
    state.noted = 0;
    const bool fetch = p.blocks == 1 && count > kTileColumns;  // several blocks find the codes in the last cache
    CodePrefetch next =
        prefetch_of<C, Arithmetic>(p, book, ready, fetch ? later : Span{}, chunk.count * ceil_div(count, kTileColumns));
    for (int64_t n = 0; n < count && !futile(); n += kTileColumns) {
      const bool last = count - n <= kTileColumns + kLanes;  // before the columns of another width, or the end
      const auto matched = [&](const auto& match) {
        match.raise(next);
        if constexpr (kTallies<Arithmetic>)
          return match.collect(book, last);
        else
          return match.collect(book);
      };
      while (!with_match(chunk, n, matched)) chunk = chunk_of<Arithmetic, C>(p, book, ready, here, s);
      state.counts.products += min(kTileColumns, count - n) * chunk.count * kGroupRows * 4 / Arithmetic::kPacking;
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    Vector& vector = *s.list[n];
    if (vector.square != vector.square) continue;
    vector.low = s.low[n];
    if (futile()) vector.count = kAll;
    // t <= |a| |b| - |b|^2 / 2, which falls as |b| grows past |a|
    const float length = vector.square < 0 ? __builtin_inff() : 1.02f * s.length[n];
    if (left_out == __builtin_inff())
      vector.left_out_high = -left_out;
    else
      vector.left_out_high = length < left_out ? left_out * (length - left_out / 2) : __builtin_inff();
  }
}

// f(the arithmetic of a packing)
template <class F>
void with_arithmetic(const NearestProblem& p, int64_t packing, F f) {
#if defined(__AVX512BF16__)
  if (packing == 4 && p.tallied) return tallied_channels(p.d) == 4 ? f(Tally<4>{}) : f(Tally<2>{});
#if defined(__AMX_TILE__)
  if (packing == 2) return f(Bf16Tiles{});
#else
  if (packing == 4) return f(Int8Quads{});
  if (packing == 2) return f(Bf16Pairs{});
#endif
#elif defined(VQFAST_INTEGERS)
  if (packing == 2) return p.tallied ? f(Tally<2>{}) : f(Int16Pairs{});
#endif
  f(Float32{});
}

// Finds the candidates of a block of vectors in a part of the codes, in passes from `packing` to float32. Returns the
// packing with which the next block should start.
template <class T>
int64_t search_part(
    const NearestProblem& p, const Codebook& book, int64_t block, int64_t part, int64_t packing, const Scratch& s) {
  const Span vectors = vectors_in(p, block), groups = part_of(p.groups, p.parts, part);
  const int64_t count = count_of(vectors);
  int64_t left = count, next = packing;
  locate(p, book, vectors.begin, count, s.vectors);
  for (int64_t n = 0; n < count; ++n) {
    Vector& vector = *(s.list[n] = s.vectors + n);
    vector.low = -__FLT_MAX__, vector.left_out_high = -__builtin_inff(), vector.count = kAll, vector.same = nullptr;
    vector.candidates = s.candidates + n * p.max_candidates;
  }
  if (s.state->equal)
    for (int64_t n = left = 0; n < count; ++n) left = list<T>(p, s.vectors[n], s.list, left);
  s.state->equal = 2 * left < count;
  if (p.direct) return search_directly<T>(p, book, groups, count, s), packing;
  bool scouts = false;
  for (int64_t at = p.d <= kMaxChannels ? packing : 0; left && at;) {
    with_arithmetic(p, at, [&](auto arithmetic) {
      pass<T, decltype(arithmetic)>(p, book, groups, left, scouts, s);
    });
    const int64_t listed = left;
    int64_t lost = left = 0;
    for (int64_t n = 0; n < listed; ++n)
      if (s.list[n]->count == kAll) left = list<T>(p, *s.list[n], s.list, left), ++lost;
    s.state->equal |= 4 * left < lost && 2 * lost > count;
    const bool failed = 2 * left > count;
    const bool tallied = p.tallied && at == p.packing;  // tallies know of whole chunks only
    if (failed && !scouts && count >= kManyVectors && !tallied) {
      scouts = true;  // the same pass once more
      continue;
    }
    if (failed) next = max(1, at / 2);
    at /= 2;
  }
  return next;
}

// See NearestKernel. Where there are several parts, the vectors' candidates stay in the scratch for `finish`.
int64_t search(const NearestProblem& p, Span units, void* scratch) {
  char *memory = static_cast<char*>(scratch), *end;
  const Scratch s = carve(p, memory, end);
  int64_t packing = p.packing;
  s.state->counts = {}, s.state->equal = false;
  with_precision(p.precision, [&](auto element) {
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t part = unit % p.parts, block = unit / p.parts % p.blocks, book = unit / p.parts / p.blocks;
      packing = search_part<decltype(element)>(p, p.books[book], block, part, packing, s);
      if (p.parts > 1) continue;
      const int64_t before = s.state->counts.distances;
      finish<decltype(element)>(p, unit, memory);
      // Many ties, even if few for each vector: the next block should know of repeats, and of equal vectors.
      const bool many = s.state->counts.distances - before > 2 * p.max_block;
      s.state->equal |= many;
      if (many && p.max_block >= kManyVectors) p.books[book].find_repeats(p.books[book]);
    }
  });
  const SearchCounts& counts = s.state->counts;
  if (p.counts) {
    __atomic_fetch_add(&p.counts->products, counts.products, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p.counts->candidates, counts.candidates, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p.counts->distances, counts.distances, __ATOMIC_RELAXED);
  }
  return packing;
}

}  // namespace

extern const NearestKernel nearest_kernel;
const NearestKernel nearest_kernel{
    plan,
    [](const NearestProblem& p, Codebook& book, void* room) {
      p.precision == Precision::f64 ? centre<double>(p, book, room) : centre<float>(p, book, room);
    },
    prepared_bytes,
    [](const NearestProblem& p, const Codebook& book, Span groups, void* room) {
      with_arithmetic(p, book.packing, [&](auto arithmetic) {
        using Arithmetic = decltype(arithmetic);
#if defined(VQFAST_INTEGERS)
        if constexpr (kTallies<Arithmetic>) {
          float* numbers = numbers_of(p, book);
          float* exact = numbers + ceil_div(p.groups * tally_size(p.d), kLanes) * kLanes;
          const auto prepare = [&](auto number) {
            prepare_tallies<decltype(number), Arithmetic::kChannels>(
                p, book, groups, numbers + groups.begin * tally_size(p.d), exact + groups.begin * exact_size(p.d),
                groups_of(book) + groups.begin, room);
          };
          p.precision == Precision::f64 ? prepare(double{}) : prepare(float{});
        } else
#endif
        {
          float* codes = numbers_of(p, book) + groups.begin * group_size(p.d, Arithmetic::kPacking);
          CodeGroup* to = groups_of(book) + groups.begin;
          p.precision == Precision::f64 ? prepare<Arithmetic, double>(p, book, groups, codes, to, room)
                                        : prepare<Arithmetic, float>(p, book, groups, codes, to, room);
        }
      });
    },
    scratch_bytes,
    search,
    [](const NearestProblem& p, int64_t block, void* memory) {
      with_precision(p.precision,
                     [&](auto element) { finish<decltype(element)>(p, block, static_cast<char*>(memory)); });
    },
};

}  // namespace vqfast::VQFAST_ISA
