// Masked convolution: the tile with positions as rows and output channels as columns, held over the visible taps.
//
// A block of positions has its part of x copied once, channels last and zero outside the grid, so that a tap is an
// offset into that patch and no product is with a mask's zero. The packed weight of one tile of channels streams from L2
// past the whole block, 2 loads and a broadcast a row for two multiply-adds a row: at the peak of them on Zen 5. The gradient of x is the same with the taps turned round. That of the weight has
// channels of x as rows, and runs over positions. Sums are left in L1 and activated from there, a pass of its own,
// so that the order in memory, the type and the activation are nobody else's concern.

#include "masked_conv.h"

#include <utility>

#include "activate.h"
#include "floats.h"

namespace vqfast::VQFAST_ISA {
namespace {

constexpr int kMost = kRows - (kRows > 6);  // with one row fewer the loop needs no register but the CPU's own
constexpr int64_t kSegment = 5 * kMost;  // positions whose sums wait to be activated

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// The i-th of `parts` even parts of `count`.
Span part_of(int64_t count, int64_t parts, int64_t i) { return {count * i / parts, count * (i + 1) / parts}; }

// What the sums of a type are made of.
template <class T>
struct Types {
  using Product = typename Accumulate<T>::Product;
  using A = typename Product::Element;
  using V = typename Product::Vector;
  static constexpr int kLanes = sizeof(V) / sizeof(A), kColumns = kVectors * kLanes;
};

// ------------------------------------------------------------------------------------------------ blocks

// The offsets that the taps reach, the own position included.
struct Reach {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  explicit Reach(const MaskedConv& p) {
    for (int64_t t = 0; t < p.taps; ++t) {
      top = least(top, p.dy[t]), bottom = most(bottom, p.dy[t]);
      left = least(left, p.dx[t]), right = most(right, p.dx[t]);
    }
  }
  bool none() const { return !(top | bottom | left | right); }
};

struct Block {
  int64_t sample;
  Span rows, columns;
};

int64_t across(const MaskedConv& p) { return ceil_div(p.width, p.columns); }
int64_t down(const MaskedConv& p) { return ceil_div(p.height, p.rows); }
int64_t blocks(const MaskedConv& p) { return p.batch * down(p) * across(p); }

Block locate(const MaskedConv& p, int64_t block) {
  const int64_t column = block % across(p), row = block / across(p) % down(p);
  return {block / across(p) / down(p), part_of(p.height, down(p), row), part_of(p.width, across(p), column)};
}

// Rows, then samples, become one long row where memory and taps allow it.
void flatten(MaskedConv& p) {
  if (!Reach(p).none()) return;
  const auto merge = [&](int64_t& count, int64_t Grid::*outer, int64_t Grid::*inner) {
    for (const Grid* g : {&p.x, &p.extra, &p.residual, &p.result, &p.kept})
      if (g->at && g->*outer != g->*inner * p.width) return;
    p.width *= count;
    count = 1;
  };
  merge(p.height, &Grid::row, &Grid::column);
  if (p.height == 1) merge(p.batch, &Grid::sample, &Grid::column);
}

// ----------------------------------------------------------------------------------------------- products

// Two neighbours y0, y1 that share their inputs cost fewer products than twice the taps, one more than taps that are
// side by side (Toom 1963; Winograd 1980, "Arithmetic Complexity of Computations"). With inputs d and taps g,
//   of two:   y0 = (d0 - d1) g0 + d1 (g0 + g1),   y1 = -(d1 - d2) g1 + d1 (g0 + g1),
//   of three: y0 = (d0 - d2) g0 + S + D,          y1 = -(d1 - d3) g2 + S - D,
//     S = (d1 + d2) (g0 + g1 + g2) / 2,           D = -(d1 - d2) (g0 - g1 + g2) / 2.
// So four sums run over all taps and channels: y0's own, y1's own, S and D. Their numbers are neighbours' differences
// and sums, at most twice as large as the inputs, so float32 loses a bit; float64 is computed tap by tap. No output
// reads what none of its own taps see. The weight's gradient takes the same products, turned round.
enum View : int64_t { kItself, kNext, kAfterNext, kBoth, kViews };  // d[i], d[i] - d[i+1], d[i] - d[i+2], d[i] + d[i+1]
enum Sum : int64_t { kFirst, kSecond, kShared, kOpposed, kSums };

struct Rule {
  int64_t sum, view, shift;
  float factors[3];
};
constexpr Rule kRules[3][kSums] = {
    {{kFirst, kItself, 0, {1}}, {kSecond, kItself, 1, {1}}, {-1}, {-1}},
    {{kFirst, kNext, 0, {1}}, {kSecond, kNext, 1, {0, -1}}, {kShared, kItself, 1, {1, 1}}, {-1}},
    {{kFirst, kAfterNext, 0, {1}}, {kSecond, kAfterNext, 1, {0, 0, -1}}, {kShared, kBoth, 1, {.5f, .5f, .5f}},
     {kOpposed, kNext, 1, {-.5f, .5f, -.5f}}}};

// f(product of the taps as they are, their number) for each run of up to three taps side by side.
template <class F>
void for_runs(const MaskedConv& p, F f) {
  for (int64_t t = 0, count; t < p.taps; t += count) {
    const auto follows = [&](int64_t n, int64_t step) {
      return t + n < p.taps && p.dy[t + n] == p.dy[t] && p.dx[t + n] == p.dx[t] + n * step;
    };
    const int64_t step = follows(1, 1) - follows(1, -1);
    for (count = 1; step && count < 3 && follows(count, step);) ++count;
    Product run{kItself, p.dy[t], least(p.dx[t], p.dx[t + count - 1]), {}, {}};
    for (int64_t n = 0; n < count; ++n) run.taps[step < 0 ? count - 1 - n : n] = p.tap[t + n];
    f(run, count);
  }
}

void plan_products(MaskedConv& p) {
  int64_t pair = 0, filled = 0;
  for_runs(p, [&](const Product&, int64_t count) { pair += count + 1; });
  p.paired = p.products && !p.codes && p.type != Type::f64 && p.width >= 4 && pair < 2 * p.taps;
  for (int64_t sum = 0; sum < kSums; ++sum) {
    p.first[sum] = filled;
    if (!p.paired) {
      for (int64_t t = 0; t < p.taps && p.products && sum == 0; ++t)
        p.products[t] = {kItself, p.dy[t], p.dx[t], {p.tap[t]}, {1}};
      filled = p.taps;
      continue;
    }
    for_runs(p, [&](Product run, int64_t count) {
      const Rule& rule = kRules[count - 1][sum];
      if (rule.sum < 0) return;
      run.view = rule.view, run.dx += rule.shift;
      for (int64_t n = 0; n < count; ++n) run.factors[n] = rule.factors[n];
      p.products[filled++] = run;
    });
  }
  p.first[kSums] = filled;
}

// Blocks whose patch takes a quarter of L2, and enough of them.
void plan(MaskedConv& p, int64_t threads) {
  flatten(p);
  plan_products(p);
  const int64_t fair = ceil_div(p.batch * p.height * p.width, threads);
  const int64_t wanted = least(256, 32768 / most(1, p.in)) / (p.paired ? 2 : 1);
  const int64_t positions = most(1, least(fair, most(kSegment, wanted)));
  p.columns = most(1, least(p.width, positions));  // one, where there are none
  p.rows = most(1, least(p.height, positions / p.columns));
}

// -------------------------------------------------------------------------------------------------- patch

template <class V, int... kI>
[[gnu::always_inline]] inline void interleave(V& a, V& b, std::integer_sequence<int, kI...>) {
  constexpr int kN = sizeof...(kI);
  const V low = __builtin_shufflevector(a, b, (kI / 2 + kI % 2 * kN)...);
  b = __builtin_shufflevector(a, b, (kN / 2 + kI / 2 + kI % 2 * kN)...);
  a = low;
}

// As many vectors as they have lanes: a perfect shuffle of them, log2 times.
template <class V, int kN>
[[gnu::always_inline]] inline void transpose(V (&m)[kN]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < kN; stage *= 2) {
    V next[kN];
#pragma GCC unroll 8
    for (int i = 0; i < kN / 2; ++i) {
      next[2 * i] = m[i], next[2 * i + 1] = m[i + kN / 2];
      interleave(next[2 * i], next[2 * i + 1], std::make_integer_sequence<int, kN>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) m[i] = next[i];
  }
}

// `count` channels of a block of positions, channels last, `pitch` apart; 0 outside the grid, and behind the channels
// up to a whole vector.
template <class T>
void copy_patch(const MaskedConv& p, const Grid& g, const Block& at, int64_t channel, int64_t count,
                typename Types<T>::A* to, int64_t pitch) {
  using A = typename Types<T>::A;
  using V = typename Types<T>::V;
  constexpr int kLanes = Types<T>::kLanes;
  const int64_t columns = at.columns.end - at.columns.begin;
  const int64_t first = least(columns, most(0, -at.columns.begin));
  const int64_t inside = most(0, least(p.width, at.columns.end) - most(0, at.columns.begin));
  const auto line = [&](int64_t y) { return to + ((y - at.rows.begin) * columns + first) * pitch; };
  const auto source = [&](int64_t y, int64_t c) {
    return static_cast<const T*>(g.at) + at.sample * g.sample + y * g.row + (at.columns.begin + first) * g.column +
           (channel + c) * g.channel;
  };
  const Span seen{most(0, at.rows.begin), inside ? least(p.height, at.rows.end) : 0};
  for (int64_t y = at.rows.begin; y < at.rows.end; ++y) {
    const bool out = y < seen.begin || y >= seen.end;
    memset(line(y) - first * pitch, 0, sizeof(A) * (out ? columns : first) * pitch);
    if (!out) memset(line(y) + inside * pitch, 0, sizeof(A) * (columns - first - inside) * pitch);
  }
  if (g.channel == 1) {
    for (int64_t y = seen.begin; y < seen.end; ++y)
      for (int64_t x = 0; x < inside; ++x)
        for (int64_t c = 0; c < count; c += kLanes)
          store(load_part<V>(source(y, c) + x * g.column, count - c), line(y) + x * pitch + c);
    return;
  }
  for (int64_t c = 0; c < count; c += kLanes)  // outermost: each channel's rows are adjacent in memory
    for (int64_t y = seen.begin; y < seen.end; ++y)
      for (int64_t x = 0; x < inside; x += kLanes) {
        V m[kLanes];
        for (int l = 0; l < kLanes; ++l)
          m[l] = c + l < count ? load_part<V>(source(y, c + l) + x, inside - x) : V{};
        transpose(m);
        for (int l = 0; l < kLanes && x + l < inside; ++l) store(m[l], line(y) + (x + l) * pitch + c);
      }
}

// What the taps of a block of positions see.
template <class A>
struct Patch {
  const A* at;                // of the block's first position
  int64_t row, column, view;  // distances
};

template <class T>
bool in_place(const MaskedConv& p) {
  return __is_same(T, typename Types<T>::A) && p.x.channel == 1 && Reach(p).none();
}

// Not a power of two, whose multiples would share few places in L1.
template <class T>
int64_t patch_pitch(const MaskedConv& p) {
  return round_up(p.in, Types<T>::kLanes) + Types<T>::kLanes;
}

template <class T>
int64_t patch_size(const MaskedConv& p) {
  if (p.codes || in_place<T>(p)) return 0;
  const Reach reach(p);
  const int64_t columns = p.columns + p.paired + reach.right - reach.left;
  return (p.paired ? kViews : 1) * (p.rows + reach.bottom - reach.top) * columns * patch_pitch<T>(p);
}

// The differences and sums of neighbours behind the patch itself. At the end of a row they mean nothing.
template <class A>
void make_views(A* patch, int64_t size, int64_t pitch) {
  constexpr int kLanes = Sums<Single>::kLanes;
  const auto fill = [=](View view, int64_t away, auto combine) {
    for (int64_t i = 0; i < size - away * pitch; i += kLanes)
      store(combine(load(patch + i), load(patch + i + away * pitch)), patch + view * size + i);
  };
  fill(kNext, 1, [](auto a, auto b) { return a - b; });
  fill(kAfterNext, 2, [](auto a, auto b) { return a - b; });
  fill(kBoth, 1, [](auto a, auto b) { return a + b; });
}

template <class T>
Patch<typename Types<T>::A> make_patch(const MaskedConv& p, const Block& block, typename Types<T>::A* room) {
  using A = typename Types<T>::A;
  if (in_place<T>(p)) {
    const A* at = static_cast<const A*>(p.x.at) + block.sample * p.x.sample;
    return {at + block.rows.begin * p.x.row + block.columns.begin * p.x.column, p.x.row, p.x.column, 0};
  }
  const Reach reach(p);
  const Block seen{block.sample,
                   {block.rows.begin + reach.top, block.rows.end + reach.bottom},
                   {block.columns.begin + reach.left, block.columns.end + reach.right + p.paired}};
  const int64_t pitch = patch_pitch<T>(p), row = (seen.columns.end - seen.columns.begin) * pitch;
  const int64_t size = (seen.rows.end - seen.rows.begin) * row;
  copy_patch<T>(p, p.x, seen, 0, p.in, room, pitch);
  if constexpr (__is_same(A, float))
    if (p.paired) make_views(room, size, pitch);
  return {room - reach.top * row - reach.left * pitch, row, pitch, size};
}

// Where the products of the block's first position begin.
template <class A>
void find_offsets(const MaskedConv& p, const Patch<A>& patch, int64_t* offsets) {
  for (int64_t n = 0; n < p.first[kSums]; ++n) {
    const auto& product = p.products[n];
    offsets[n] = product.view * patch.view + product.dy * patch.row + product.dx * patch.column;
  }
}

// ------------------------------------------------------------------------------------------------ product

// Sums of a few rows by one tile of columns over several products, whose rows begin at the offsets.
template <class A>
struct Work {
  const A* from;  // the sums begin with these
  int64_t from_stride;
  const A* rows;
  const int64_t* offsets;
  int64_t products, steps, row_stride, step_stride;
  const A* columns;
  A* to;  // (rows, columns)
  int64_t to_stride;
};

template <class Product, int kR>
void multiply(const Work<typename Product::Element>& w) {
  Sums<Product, kR> sums;
  using S = Sums<Product, kR>;
  sums.start(w.from, w.from_stride);
  for (int64_t i = 0; i < w.products; ++i)
    sums.add(w.steps, w.rows + w.offsets[i], w.row_stride, w.step_stride, w.columns + i * w.steps * S::kColumns);
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kVectors; ++v) store(sums.of[r][v], w.to + r * w.to_stride + v * S::kLanes);
}

template <class Product, int... kI>
void multiply_rows(int64_t rows, const Work<typename Product::Element>& w, std::integer_sequence<int, kI...>) {
  static constexpr void (*kOf[])(const Work<typename Product::Element>&) = {multiply<Product, kI + 1>...};
  kOf[rows - 1](w);
}

template <class Product>
void multiply(int64_t rows, const Work<typename Product::Element>& w) {
  multiply_rows<Product>(rows, w, std::make_integer_sequence<int, kMost>{});
}

// --------------------------------------------------------------------------------------------- activation

int64_t offset(const Grid& g, const Block& b) {
  return b.sample * g.sample + b.rows.begin * g.row + b.columns.begin * g.column;
}

// A grid's numbers at some positions and channels, in lines of what is adjacent: channels of a position, or the reverse.
template <class T>
struct Lines {
  T* at;
  int64_t line, inside;  // distances
  Lines(const Grid& g, bool last, const Block& b, int64_t channel)
      : at(static_cast<T*>(g.at)), line(last ? g.column : g.channel), inside(last ? g.channel : g.column) {
    if (at) at += offset(g, b) + channel * g.channel;
  }
  template <class V>
  [[gnu::always_inline]] V read(int64_t l, int64_t i, int64_t count) const {
    return inside ? load_part<V>(at + l * line + i, count) : V{} + load_part<V>(at + l * line, 1)[0];
  }
  template <class V>
  [[gnu::always_inline]] void write(V v, int64_t l, int64_t i, int64_t count) const {
    store_part(v, at + l * line + i, count);
  }
};

// Sums in lines as those of the result, `pitch` apart, become the result from `channel` on; the gate's second halves
// lie `second` further.
template <class T, Epilogue kEpilogue, class S>
void activate(const MaskedConv& p, const Block& b, int64_t channel, int64_t channels, const S* sums, int64_t pitch,
              int64_t second) {
  using V = typename Types<T>::V;
  constexpr int kLanes = Types<T>::kLanes;
  constexpr bool kGate = kEpilogue == Epilogue::gate || kEpilogue == Epilogue::gate_gradient;
  const bool last = p.result.channel == 1;
  const int64_t positions = b.columns.end - b.columns.begin;
  const int64_t lines = last ? positions : channels, length = last ? channels : positions;
  const Lines<const T> residual(p.residual, last, b, channel);
  const Lines<const T> extra[2] = {{p.extra, last, b, channel}, {p.extra, last, b, channel + p.out / 2}};
  const Lines<T> kept[2] = {{p.kept, last, b, channel}, {p.kept, last, b, channel + p.out / 2}};
  const Lines<T> result[2] = {{p.result, last, b, channel}, {p.result, last, b, channel + p.out / 2}};
  for (int64_t l = 0; l < lines; ++l)
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t count = least(kLanes, length - i);
      V sum[2];
      for (int v = 0; v < 1 + kGate; ++v) {
        sum[v] = load_part<V>(sums + l * pitch + v * second + i, count);
        if (p.extra.at) sum[v] += extra[v].template read<V>(l, i, count);
        if (p.kept.at) kept[v].write(sum[v], l, i, count);
      }
      if constexpr (kEpilogue == Epilogue::gate_gradient) {
        const Gate<V> gate(sum[0], sum[1]);
        const V grad = residual.template read<V>(l, i, count);
        result[0].write(grad * gate.to_a(), l, i, count);
        result[1].write(grad * gate.to_b(), l, i, count);
        continue;
      }
      V value = sum[0];
      if constexpr (kEpilogue == Epilogue::relu) value = value < 0 ? V{} : value;
      if constexpr (kEpilogue == Epilogue::gate) value = Gate<V>(sum[0], sum[1]).value();
      if (p.residual.at) value += residual.template read<V>(l, i, count);
      result[0].write(value, l, i, count);
    }
}

template <class T, class S>
void activate(const MaskedConv& p, const Block& b, int64_t channel, int64_t channels, const S* sums, int64_t pitch,
              int64_t second) {
  switch (p.epilogue) {
    case Epilogue::none: return activate<T, Epilogue::none>(p, b, channel, channels, sums, pitch, second);
    case Epilogue::relu: return activate<T, Epilogue::relu>(p, b, channel, channels, sums, pitch, second);
    case Epilogue::gate: return activate<T, Epilogue::gate>(p, b, channel, channels, sums, pitch, second);
    case Epilogue::gate_gradient:
      return activate<T, Epilogue::gate_gradient>(p, b, channel, channels, sums, pitch, second);
  }
}

// ------------------------------------------------------------------------------------------------ forward

// The sums' channels in one vector of a tile. Before a gate the tile's vectors hold both halves' partners.
struct Lane {
  int64_t channel, count;
};

template <class T>
Lane lane(const MaskedConv& p, int64_t tile, int vector) {
  constexpr int kLanes = Types<T>::kLanes;
  const int64_t half = p.out / 2;
  if (p.epilogue == Epilogue::gate) return {vector * half + tile * kLanes, least(kLanes, half - tile * kLanes)};
  const int64_t channel = (tile * kVectors + vector) * kLanes;
  return {channel, most(0, least(kLanes, p.out - channel))};
}

// Asks for a part of a block's numbers at some channels: products hide how long memory takes. Channels last only, as
// planes of channels crowd each other out of L1.
template <class T>
void ask_for(const Grid& g, const Block& b, const Lane& of, int64_t parts, int64_t part) {
  if (!g.at || g.channel != 1) return;
  const T* at = static_cast<const T*>(g.at) + offset(g, b) + of.channel;
  const int64_t columns = b.columns.end - b.columns.begin;
  const Span span = part_of((b.rows.end - b.rows.begin) * columns, parts, part);
  for (int64_t n = span.begin; n < span.end; ++n)
    for (int64_t i = 0; i < of.count; i += 64 / int64_t(sizeof(T)))
      __builtin_prefetch(at + n / columns * g.row + n % columns * g.column + i, 1);
}

template <class T>
int64_t tiles(const MaskedConv& p) {
  const bool gate = p.epilogue == Epilogue::gate;
  return ceil_div(gate ? p.out / 2 : p.out, gate ? Types<T>::kLanes : Types<T>::kColumns);
}

// Numbers of a packed tile: (products, in, columns), the bias, and zeros for sums that begin without it.
template <class T>
int64_t tile_size(const MaskedConv& p) {
  return (p.first[kSums] * p.in + 2) * Types<T>::kColumns;
}

template <class T>
void pack(const MaskedConv& p, Span span, void* packed) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for (int64_t j = span.begin; j < span.end; ++j) {
    A* tile = static_cast<A*>(packed) + j * tile_size<T>(p);
    memset(tile, 0, sizeof(A) * tile_size<T>(p));
    for (int v = 0; v < kVectors; ++v) {
      const Lane to = lane<T>(p, j, v);
      for (int64_t l = 0; l < to.count; ++l) {
        A* column = tile + v * kLanes + l;
        const T* from = static_cast<const T*>(p.weight) + (to.channel + l) * p.weight_out;
        for (int64_t i = 0; i < p.in; ++i)
          for (int64_t n = 0; n < p.first[kSums]; ++n)
            for (int k = 0; k < 3; ++k)
              if (const float factor = p.products[n].factors[k])
                column[(n * p.in + i) * kColumns] += factor * A(from[i * p.weight_in + p.products[n].taps[k]]);
        if (p.bias) column[p.first[kSums] * p.in * kColumns] = A(static_cast<const T*>(p.bias)[to.channel + l]);
      }
    }
  }
}

template <class T>
void forward(const MaskedConv& p, Span span, const void* packed, void* scratch) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  constexpr int64_t kTurned = round_up(kSegment, kLanes);
  A sums[kTurned][kColumns] = {}, turned[kColumns][kTurned], parts[kSums][kSegment / 2 + 1][kColumns];
  auto* offsets = static_cast<int64_t*>(scratch);
  A* room = reinterpret_cast<A*>(offsets + round_up(4 * p.taps, 8));
  const bool last = p.result.channel == 1;
  const int64_t sums_of_position = p.paired ? kSums : 1;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const Block block = locate(p, n);
    const Patch<A> patch = make_patch<T>(p, block, room);
    find_offsets(p, patch, offsets);
    const Block next = locate(p, least(n + 1, span.end - 1));
    const int64_t rows = block.rows.end - block.rows.begin, columns = block.columns.end - block.columns.begin;
    const int64_t segments = ceil_div(columns, kSegment);
    for (int64_t j = 0; j < tiles<T>(p); ++j) {
      const A* tile = static_cast<const A*>(packed) + j * tile_size<T>(p);
      const A* bias = tile + p.first[kSums] * p.in * kColumns;
      const bool done = __is_same(T, A) && last && p.epilogue == Epilogue::none && (j + 1) * kColumns <= p.out &&
                        !p.extra.at && !p.residual.at && !p.kept.at;
      for (int64_t y = block.rows.begin; y < block.rows.end; ++y)
        for (int64_t s = 0; s < segments; ++s) {
          const Span segment = part_of(columns, segments, s);
          const int64_t positions = segment.end - segment.begin, together = 1 + p.paired;
          const int64_t groups = ceil_div(positions, together), runs = ceil_div(groups, kMost);
          const Block here{block.sample, {y, y + 1}, {block.columns.begin + segment.begin, block.columns.begin + segment.end}};
          ask_for<T>(p.x, next, {0, p.in}, tiles<T>(p) * rows * segments,
                     (j * rows + y - block.rows.begin) * segments + s);
          // Whole sums land in the result where nothing else is to be done.
          A* const to = done ? static_cast<A*>(p.result.at) + offset(p.result, here) + j * kColumns : sums[0];
          const int64_t to_stride = done ? p.result.column : kColumns;
          const A* origin = patch.at + (y - block.rows.begin) * patch.row + segment.begin * patch.column;
          for (int64_t sum = 0; sum < sums_of_position; ++sum)
            for (int64_t r = 0; r < runs; ++r) {
              const Span run = part_of(groups, runs, r);
              const int64_t first = p.first[sum];
              for (const Grid* g : {&p.extra, &p.residual, &p.kept, &p.result})
                for (int v = 0; v < kVectors; ++v)
                  ask_for<T>(*g, here, lane<T>(p, j, v), sums_of_position * runs, sum * runs + r);
              multiply<typename Types<T>::Product>(
                  run.end - run.begin,
                  {sum < kShared ? bias : bias + kColumns, 0, origin + run.begin * together * patch.column,
                   offsets + first, p.first[sum + 1] - first, p.in, together * patch.column, 1,
                   tile + first * p.in * kColumns, p.paired ? parts[sum][run.begin] : to + run.begin * to_stride,
                   p.paired ? kColumns : to_stride});
            }
          for (int64_t g = 0; g < groups && p.paired; ++g)
            for (int v = 0; v < kColumns; v += kLanes) {
              const auto shared = load(&parts[kShared][g][v]), opposed = load(&parts[kOpposed][g][v]);
              store(load(&parts[kFirst][g][v]) + (shared + opposed), to + 2 * g * to_stride + v);
              if (2 * g + 1 < positions)
                store(load(&parts[kSecond][g][v]) + (shared - opposed), to + (2 * g + 1) * to_stride + v);
            }
          if (done) continue;
          if (!last)
            for (int64_t x = 0; x < positions; x += kLanes)
              for (int v = 0; v < kVectors; ++v) {
                typename Types<T>::V m[kLanes];
                for (int l = 0; l < kLanes; ++l) m[l] = load(&sums[x + l][v * kLanes]);
                transpose(m);
                for (int l = 0; l < kLanes; ++l) store(m[l], &turned[v * kLanes + l][x]);
              }
          const A* at = last ? sums[0] : turned[0];
          const int64_t pitch = last ? kColumns : kTurned, second = last ? kLanes : kLanes * kTurned;
          for (int v = 0; v < (p.epilogue == Epilogue::gate ? 1 : kVectors); ++v) {
            const Lane to = lane<T>(p, j, v);
            if (to.count) activate<T>(p, here, to.channel, to.count, at + v * second, pitch, second);
          }
        }
    }
  }
}

// ---------------------------------------------------------------------------------------- weight gradient

// Numbers of another type, `stride` apart.
template <class T, class A>
void put(const A* from, int64_t count, T* to, int64_t stride) {
  for (int64_t l = 0; l < count; ++l) store_part(typename Types<T>::V{} + from[l], to + l * stride, 1);
}

int64_t row_blocks(const MaskedConv& p) { return ceil_div(p.in, kMost); }

template <class T>
void weight_gradient(const MaskedConv& p, Span parts, void* packed, void* scratch) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  auto* offsets = static_cast<int64_t*>(scratch);
  auto* lines = offsets + round_up(4 * p.taps, 8);
  A* room = reinterpret_cast<A*>(lines + round_up(p.rows, 8));
  A* columns = room + patch_size<T>(p);
  const int64_t together = 1 + p.paired, products = p.first[kSums];
  const auto tile_of = [&](int64_t j) { return static_cast<A*>(packed) + j * tile_size<T>(p); };
  const auto sums_of = [&](A* tile, int64_t n, int64_t channel) { return tile + (n * p.in + channel) * kColumns; };
  const auto each = [&](auto f) {  // f(tile's number, channels of x)
    for (int64_t n = parts.begin; n < parts.end; ++n) f(n / row_blocks(p), part_of(p.in, row_blocks(p), n % row_blocks(p)));
  };
  each([&](int64_t j, Span in) {
    for (int64_t n = 0; n < products; ++n)
      memset(sums_of(tile_of(j), n, in.begin), 0, sizeof(A) * (in.end - in.begin) * kColumns);
    if (in.begin == 0) memset(sums_of(tile_of(j), products, 0), 0, sizeof(A) * kColumns);
  });
  for (int64_t n = 0; n < blocks(p); ++n) {
    const Block block = locate(p, n);
    const Patch<A> patch = make_patch<T>(p, block, room);
    find_offsets(p, patch, offsets);
    const int64_t rows = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
    const int64_t steps = ceil_div(width, together), size = rows * width * kColumns, part = rows * steps * kColumns;
    for (int64_t y = 0; y < rows; ++y) lines[y] = y * patch.row;
    int64_t ready = -1;
    each([&](int64_t j, Span in) {
      A* tile = tile_of(j);
      A* of_sums = p.paired ? columns + size : columns;  // the gradient of each of the four sums
      if (j != ready) {
        copy_patch<T>(p, p.result, block, j * kColumns, least(kColumns, p.out - j * kColumns), columns, kColumns);
        for (int64_t i = 0; i < rows * steps && p.paired; ++i) {
          const A* first = columns + (i / steps * width + i % steps * 2) * kColumns;
          const bool alone = i % steps * 2 + 1 == width;
          for (int64_t v = 0; v < kColumns; v += kLanes) {
            const auto a = load(first + v), b = alone ? a - a : load(first + kColumns + v);
            A* to = of_sums + i * kColumns + v;
            store(a, to), store(b, to + part), store(a + b, to + 2 * part), store(a - b, to + 3 * part);
          }
        }
      }
      ready = j;
      for (int64_t sum = 0; sum < kSums; ++sum)
        for (int64_t n = p.first[sum]; n < p.first[sum + 1]; ++n) {
          A* sums = sums_of(tile, n, in.begin);
          multiply<typename Types<T>::Product>(
              in.end - in.begin, {sums, kColumns, patch.at + offsets[n] + in.begin, lines, rows, steps, 1,
                                  together * patch.column, of_sums + sum * part, sums, kColumns});
        }
      if (in.begin > 0) return;
      A* bias = sums_of(tile, products, 0);
      for (int v = 0; v < kVectors; ++v) {
        auto sum = load(bias + v * kLanes);
        for (int64_t i = 0; i < rows * width; ++i) sum += load(columns + i * kColumns + v * kLanes);
        store(sum, bias + v * kLanes);
      }
    });
  }
  each([&](int64_t j, Span in) {
    const int64_t first = j * kColumns, count = least(kColumns, p.out - first);
    T* tile = static_cast<T*>(p.weight) + first * p.weight_out;
    for (int64_t i = in.begin; i < in.end; ++i)
      for (int64_t t = 0; t < p.taps; ++t) {
        A total[kColumns] = {};
        for (int64_t n = 0; n < products; ++n)
          for (int k = 0; k < 3; ++k)
            if (const A factor = p.products[n].factors[k]; factor != 0 && p.products[n].taps[k] == p.tap[t])
              for (int l = 0; l < kColumns; ++l) total[l] += factor * sums_of(tile_of(j), n, i)[l];
        put(total, count, tile + i * p.weight_in + p.tap[t], p.weight_out);
      }
    if (in.begin == 0) put(sums_of(tile_of(j), products, 0), count, static_cast<T*>(p.bias) + first, 1);
  });
}

// ------------------------------------------------------------------------------------------------ one-hot

// The row of a packed tile that a one-hot vector picks; outside the grid that of zeros.
int64_t picked(const MaskedConv& p, int64_t sample, int64_t y, int64_t x, int64_t t) {
  y += p.dy[t], x += p.dx[t];
  if (y < 0 || y >= p.height || x < 0 || x >= p.width) return p.taps * p.in + 1;
  return t * p.in + p.codes[(sample * p.height + y) * p.width + x];
}

// f(sample, y, x) for each position of some blocks.
template <class F>
void for_positions(const MaskedConv& p, Span span, F f) {
  for (int64_t n = span.begin; n < span.end; ++n) {
    const Block block = locate(p, n);
    for (int64_t y = block.rows.begin; y < block.rows.end; ++y)
      for (int64_t x = block.columns.begin; x < block.columns.end; ++x) f(block.sample, y, x);
  }
}

// Tile by tile, each of which stays in L2 while all positions pick from it.
template <class T>
void embed(const MaskedConv& p, Span span, const void* packed) {
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for (int64_t j = 0; j < tiles<T>(p); ++j) {
    const auto* tile = static_cast<const typename Types<T>::A*>(packed) + j * tile_size<T>(p);
    for_positions(p, span, [&](int64_t sample, int64_t y, int64_t x) {
      typename Types<T>::V sums[kVectors];
      for (int v = 0; v < kVectors; ++v) sums[v] = load(tile + p.taps * p.in * kColumns + v * kLanes);
      for (int64_t t = 0; t < p.taps; ++t) {
        const auto* row = tile + picked(p, sample, y, x, t) * kColumns;
        for (int v = 0; v < kVectors; ++v) sums[v] += load(row + v * kLanes);
      }
      T* to = static_cast<T*>(p.result.at) + sample * p.result.sample + y * p.result.row + x * p.result.column;
      for (int v = 0; v < kVectors; ++v)
        if (const Lane of = lane<T>(p, j, v); of.count) store_part(sums[v], to + of.channel, of.count);
    });
  }
}

// A part is a tile's sums of one tap, or, behind the taps, those of the bias.
template <class T>
void embed_gradient(const MaskedConv& p, Span parts, void* packed) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for (int64_t n = parts.begin; n < parts.end; ++n) {
    const int64_t j = n / (p.taps + 1), t = n % (p.taps + 1), rows = t < p.taps ? p.in : 1;
    A* sums = static_cast<A*>(packed) + j * tile_size<T>(p) + t * p.in * kColumns;
    memset(sums, 0, sizeof(A) * rows * kColumns);
    for_positions(p, {0, blocks(p)}, [&](int64_t sample, int64_t y, int64_t x) {
      const int64_t row = t < p.taps ? picked(p, sample, y, x, t) - t * p.in : 0;
      if (row >= rows) return;
      const T* from = static_cast<const T*>(p.result.at) + sample * p.result.sample + y * p.result.row + x * p.result.column;
      for (int v = 0; v < kVectors; ++v)
        if (const Lane of = lane<T>(p, j, v); of.count) {
          A* sum = sums + row * kColumns + v * kLanes;
          store(load(sum) + load_part<typename Types<T>::V>(from + of.channel, of.count), sum);
        }
    });
    const int64_t first = j * kColumns, count = least(kColumns, p.out - first);
    T* weight = static_cast<T*>(p.weight) + first * p.weight_out;
    for (int64_t i = 0; i < p.in && t < p.taps; ++i)
      put(sums + i * kColumns, count, weight + i * p.weight_in + p.tap[t], p.weight_out);
    if (t == p.taps) put(sums, count, static_cast<T*>(p.bias) + first, 1);
  }
}

// --------------------------------------------------------------------------------------------------- gate

template <class T>
void gate(const MaskedConv& p, Span span) {
  const bool last = p.result.channel == 1;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const Block block = locate(p, n);
    for (int64_t y = block.rows.begin; y < block.rows.end; ++y) {
      const Block row{block.sample, {y, y + 1}, block.columns};
      const Lines<const T> x(p.x, last, row, 0);
      activate<T>(p, row, 0, p.out / 2, x.at, x.line, p.out / 2 * p.x.channel);
    }
  }
}

template <class T>
int64_t scratch(const MaskedConv& p) {
  const int64_t pairs = p.paired ? kSums * p.rows * ceil_div(p.columns, 2) : 0;
  const int64_t numbers = patch_size<T>(p) + (p.rows * p.columns + pairs) * Types<T>::kColumns;
  return int64_t(sizeof(int64_t)) * (round_up(4 * p.taps, 8) + round_up(p.rows, 8)) + int64_t(sizeof(typename Types<T>::A)) * numbers;
}

}  // namespace

#define VQFAST_BY_TYPE(call) with_type(p.type, [&](auto number) { using T = decltype(number); return call; })

extern const MaskedConvKernel masked_conv_kernel;
const MaskedConvKernel masked_conv_kernel{
    plan,
    [](const MaskedConv& p) { return VQFAST_BY_TYPE(tiles<T>(p)); },
    blocks,
    [](const MaskedConv& p) {
      return VQFAST_BY_TYPE(tiles<T>(p) * tile_size<T>(p) * int64_t(sizeof(typename Types<T>::A)));
    },
    [](const MaskedConv& p) { return VQFAST_BY_TYPE(scratch<T>(p)); },
    [](const MaskedConv& p, Span tiles, void* packed) { VQFAST_BY_TYPE(pack<T>(p, tiles, packed)); },
    [](const MaskedConv& p, Span blocks, const void* packed, void* scratch) {
      VQFAST_BY_TYPE(p.codes ? embed<T>(p, blocks, packed) : forward<T>(p, blocks, packed, scratch));
    },
    [](const MaskedConv& p) { return VQFAST_BY_TYPE(tiles<T>(p) * (p.codes ? p.taps + 1 : row_blocks(p))); },
    [](const MaskedConv& p, Span parts, void* packed, void* scratch) {
      VQFAST_BY_TYPE(p.codes ? embed_gradient<T>(p, parts, packed) : weight_gradient<T>(p, parts, packed, scratch));
    },
    [](const MaskedConv& p, Span blocks) { VQFAST_BY_TYPE(gate<T>(p, blocks)); },
};

}  // namespace vqfast::VQFAST_ISA
