// Masked convolution: the tile with positions as rows and output channels as columns, held over the visible taps.
//
// A block of positions has its part of x copied once, channels last and zero outside the grid, so that a tap is an
// offset into that patch and no product is with a mask's zero; or, where neighbours are computed together, views of it
// (blocks.h). The packed weight of one tile of channels streams from L2 past the whole block, 2 loads and a broadcast a
// row for two multiply-adds a row: at the peak of them on Zen 5. The gradient of x is the same with the taps turned
// round. That of the weight has channels of x as rows, and runs over positions. Sums are left in L1 and activated from
// there, a pass of its own, so that the order in memory, the type and the activation are nobody else's concern; sums
// that need none of that land in the result.

#include "simd/activate.h"
#include "masked_conv/patch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ product

// Sums of a few rows by one tile of columns over several products, whose rows and columns begin at offsets.
template <class A>
struct Work {
  const A* from;  // the sums begin with these
  int64_t from_stride;
  const A *rows, *columns;
  const Offset* offsets;
  int64_t products, steps, row_stride, step_stride;
  A* to;  // (rows, columns)
  int64_t to_stride;
};

template <class Product, int kR>
void multiply(const Work<typename Product::Element>& w) {
  Sums<Product, kR> sums;
  using S = Sums<Product, kR>;
  sums.start(w.from, w.from_stride);
  for (int64_t i = 0; i < w.products; ++i)
    sums.add(w.steps, w.rows + w.offsets[i].row, w.row_stride, w.step_stride, w.columns + w.offsets[i].column);
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

int64_t place(const Grid& g, int64_t sample, int64_t y, int64_t x) {
  return sample * g.sample + y * g.row + x * g.column;
}
int64_t place(const Grid& g, const Block& b) { return place(g, b.sample, b.rows.begin, b.columns.begin); }

// A grid's numbers at some positions and channels, in lines of what is adjacent: channels of a position, or positions
// of a channel.
template <class T>
struct Lines {
  T* at;
  int64_t line, inside;  // distances
  Lines(const Grid& g, bool last, const Block& b, int64_t channel)
      : at(static_cast<T*>(g.at)), line(last ? g.column : g.channel), inside(last ? g.channel : g.column) {
    if (at) at += place(g, b) + channel * g.channel;
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

// Asks memory for numbers of a block before they are needed, line by line, while products hide how long it takes.
template <class T>
class Ask {
 public:
  void add(const Grid& g, const Block& b, const Lane& of) {
    if (!g.at || !g.column || !of.count) return;
    const int64_t columns = b.columns.end - b.columns.begin;
    const bool last = g.channel == 1;
    across_ = last ? columns : most(across_, of.count), lines_ = across_ * (b.rows.end - b.rows.begin);
    grids_[count_++] = {static_cast<const char*>(g.at) + (place(g, b) + of.channel * g.channel) * int64_t(sizeof(T)),
                        g.row * int64_t(sizeof(T)), (last ? g.column : g.channel) * int64_t(sizeof(T)),
                        (last ? of.count : columns) * int64_t(sizeof(T))};
  }
  // For the first of so many parts, then the next.
  void next(int64_t parts) {
    if (!count_) return;
    for (const int64_t until = lines_ * ++part_ / parts; line_ < until; ++line_) {
      for (const Line* line = grids_; line < grids_ + count_; ++line)
        for (int64_t i = 0; i < line->bytes; i += 64)
          __builtin_prefetch(line->at + y_ * line->row + x_ * line->column + i, 1);
      if (++x_ == across_) x_ = 0, ++y_;
    }
  }

 private:
  struct Line {
    const char* at;
    int64_t row, column, bytes;
  } grids_[4 * kVectors];
  int64_t count_ = 0, across_ = 0, lines_ = 0, line_ = 0, part_ = 0, y_ = 0, x_ = 0;
};

template <class T>
int64_t tiles(const MaskedConv& p) {
  const bool gate = p.epilogue == Epilogue::gate;
  return ceil_div(gate ? p.out / 2 : p.out, gate ? Types<T>::kLanes : Types<T>::kColumns);
}

// Numbers of a packed tile: (matrices, in, columns), the bias, and zeros for sums that begin without it.
template <class T>
int64_t tile_size(const MaskedConv& p) {
  return (p.num_matrices * p.in + 2) * Types<T>::kColumns;
}

// Numbers `stride` apart, 0 behind them.
template <class T>
[[gnu::always_inline]] inline typename Types<T>::V gather(const T* from, int64_t stride, int64_t count) {
  typename Types<T>::A numbers[Types<T>::kLanes] = {};
  for (int64_t l = 0; l < count; ++l) numbers[l] = typename Types<T>::A(from[l * stride]);
  return load(numbers);
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
      A* column = tile + v * kLanes;
      const T* from = static_cast<const T*>(p.weight) + to.channel * p.weight_out;
      for (int64_t i = 0; i < p.in && to.count; ++i, from += p.weight_in)
        for (int64_t n = 0; n < p.num_matrices; ++n) {
          const Matrix& matrix = p.matrices[n];
          typename Types<T>::V sum{};
          for (int k = 0; k < 3; ++k)
            if (matrix.factors[k]) sum += matrix.factors[k] * gather<T>(from + matrix.taps[k], p.weight_out, to.count);
          store(sum, column + (n * p.in + i) * kColumns);
        }
      const T* bias = static_cast<const T*>(p.bias) + to.channel;
      if (p.bias && to.count) store(gather<T>(bias, 1, to.count), column + p.num_matrices * p.in * kColumns);
    }
  }
}

// Part of a block whose sums are made at a time: some of its rows, and groups of positions in each.
struct Band {
  Block block;
  int64_t rows, groups, first_row, first_group;
};

// f(band) for each. Views have nothing between a row's groups and the next row's, so these can be taken together.
template <class F>
void for_bands(const MaskedConv& p, const Block& block, F f) {
  const int64_t rows = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
  const int64_t across = groups(p, width), room = p.together > 1 ? kMost : kSegment;
  const int64_t tall = p.together > 1 ? most(1, room / across) : 1;
  const int64_t down = ceil_div(rows, tall), beside = ceil_div(across, room);
  for (int64_t n = 0; n < down * beside; ++n) {
    const Span y = part_of(rows, down, n / beside), g = part_of(across, beside, n % beside);
    const int64_t left = block.columns.begin + g.begin * p.together;
    f(Band{{block.sample,
            {block.rows.begin + y.begin, block.rows.begin + y.end},
            {left, least(block.columns.end, left + (g.end - g.begin) * p.together)}},
           y.end - y.begin, g.end - g.begin, y.begin, g.begin},
      down * beside);
  }
}

// The outputs of a band's groups, from their sums. to_row(r) has room for those of row r.
template <class T, class ToRow>
void put_outputs(const MaskedConv& p, const Band& band,
                 const typename Types<T>::A (&sums)[kSums][kMost][Types<T>::kColumns], ToRow to_row, int64_t stride) {
  using A = typename Types<T>::A;
  const int64_t positions = band.block.columns.end - band.block.columns.begin;
  for (int64_t g = 0; g < band.rows * band.groups; ++g) {
    const int64_t column = g % band.groups * kTogether;
    A* to = to_row(g / band.groups) + column * stride;
    for (int v = 0; v < Types<T>::kColumns; v += Types<T>::kLanes) {
      typename Types<T>::V y[kTogether] = {};
#pragma GCC unroll 12
      for (int sum = 0; sum < kSums; ++sum) {
        if (sum >= kShared && p.first[sum] == p.first[sum + 1]) continue;
        const auto x = load(&sums[sum][g][v]);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i)
          if (kOutputs[sum][i]) y[i] += A(kOutputs[sum][i]) * x;
      }
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
        if (column + i < positions) store(y[i], to + i * stride + v);
    }
  }
}

// Room for a row's sums, in whole vectors.
template <class T>
constexpr int64_t kTurned = round_up(kSegment, Types<T>::kLanes);

// A row's sums, positions side by side: into `turned`, or the result's channels from `channel` on, unless it is -1.
template <class T, class A>
void turn(const MaskedConv& p, const Block& row, int64_t channel, const A* sums,
          A (&turned)[Types<T>::kColumns][kTurned<T>]) {
  constexpr int kLanes = Types<T>::kLanes;
  const int64_t positions = row.columns.end - row.columns.begin;
  for (int64_t x = 0; x < positions; x += kLanes)
    for (int v = 0; v < Types<T>::kColumns; v += kLanes) {
      typename Types<T>::V m[kLanes];
      for (int l = 0; l < kLanes; ++l) m[l] = load(sums + (x + l) * Types<T>::kColumns + v);
      transpose(m);
      A* const result = static_cast<A*>(p.result.at) + place(p.result, row) + x + (channel + v) * p.result.channel;
      for (int l = 0; l < kLanes; ++l)
        if (channel < 0)
          store(m[l], &turned[v + l][x]);
        else
          store_part(m[l], result + l * p.result.channel, positions - x);
    }
}

template <class T>
void forward(const MaskedConv& p, Span span, const void* packed, void* scratch) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  A sums[kTurned<T>][kColumns] = {}, turned[kColumns][kTurned<T>], parts[kSums][kMost][kColumns];
  auto* offsets = static_cast<Offset*>(scratch);
  A* room = reinterpret_cast<A*>(offsets + round_up(4 * p.taps, 4));
  const bool last = p.result.channel == 1;
  const int64_t sums_of_group = p.together > 1 ? kSums : 1;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const Block block = locate(p, n);
    const Patch<A> patch = make_patch<T>(p, block, room, offsets);
    Ask<T> next;
    if (n + 1 < span.end) next.add(p.x, locate(p, n + 1), {0, p.in});
    for (int64_t j = 0; j < tiles<T>(p); ++j) {
      const A* tile = static_cast<const A*>(packed) + j * tile_size<T>(p);
      const A* bias = tile + p.num_matrices * p.in * kColumns;
      const bool plain = __is_same(T, A) && p.epilogue == Epilogue::none && (j + 1) * kColumns <= p.out &&
                         !p.extra.at && !p.residual.at && !p.kept.at;
      const bool done = plain && last;
      for_bands(p, block, [&](const Band& band, int64_t bands) {
        const Block& here = band.block;
        const int64_t count = band.rows * band.groups;
        if (j + 1 == tiles<T>(p)) next.next(bands);
        Ask<T> ask;
        for (const Grid* g : {&p.extra, &p.residual, &p.kept, &p.result})
          for (int v = 0; v < kVectors; ++v) ask.add(*g, here, lane<T>(p, j, v));
        // Whole sums land in the result where nothing else is to be done.
        const auto to_row = [&](int64_t r) {
          return done ? static_cast<A*>(p.result.at) + place(p.result, here) + r * p.result.row + j * kColumns
                      : sums[r * band.groups * p.together];
        };
        const int64_t to_stride = done ? p.result.column : kColumns, runs = ceil_div(count, kMost);
        int64_t asks = runs;
        for (int64_t sum = 1; sum < sums_of_group; ++sum) asks += sum < kShared || p.first[sum] < p.first[sum + 1];
        const A* rows = patch.at + band.first_row * patch.row + band.first_group * patch.step;
        for (int64_t sum = 0; sum < sums_of_group; ++sum) {
          if (sum >= kShared && p.first[sum] == p.first[sum + 1]) continue;
          for (int64_t r = 0; r < runs; ++r) {
            const Span run = part_of(count, runs, r);
            ask.next(asks);
            multiply<typename Types<T>::Product>(
                run.end - run.begin,
                {sum < kShared ? bias : bias + kColumns, 0, rows + run.begin * patch.step, tile,
                 offsets + p.first[sum], p.first[sum + 1] - p.first[sum], p.in, patch.step, 1,
                 p.together > 1 ? parts[sum][0] : to_row(0) + run.begin * to_stride,
                 p.together > 1 ? kColumns : to_stride});
          }
        }
        if (p.together > 1) put_outputs<T>(p, band, parts, to_row, to_stride);
        if (done) return;
        for (int64_t r = 0; r < band.rows; ++r) {
          const Block row{here.sample, {here.rows.begin + r, here.rows.begin + r + 1}, here.columns};
          const A* from = to_row(r);
          if (!last) turn<T>(p, row, plain ? j * kColumns : -1, from, turned);
          if (plain) continue;
          const A* at = last ? from : turned[0];
          const int64_t pitch = last ? kColumns : kTurned<T>, second = last ? kLanes : kLanes * kTurned<T>;
          for (int v = 0; v < (p.epilogue == Epilogue::gate ? 1 : kVectors); ++v) {
            const Lane to = lane<T>(p, j, v);
            if (to.count) activate<T>(p, row, to.channel, to.count, at + v * second, pitch, second);
          }
        }
      });
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

// f(tile's number, channels of x) for each of some parts of the weight.
template <class F>
void for_weights(const MaskedConv& p, Span parts, F f) {
  for (int64_t n = parts.begin; n < parts.end; ++n)
    f(n / row_blocks(p), part_of(p.in, row_blocks(p), n % row_blocks(p)));
}

// The gradients of all sums, one sum's after another's, of those of the outputs; both (rows, columns, tile's columns).
template <class T>
void put_sum_gradients(const MaskedConv& p, int64_t rows, int64_t width, const typename Types<T>::A* outputs,
                       typename Types<T>::A* sums) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  const int64_t across = groups(p, width);
  for (int64_t g = 0; g < rows * across; ++g) {
    const int64_t column = g % across * kTogether;
    const A* first = outputs + (g / across * width + column) * kColumns;
    for (int v = 0; v < kColumns; v += kLanes) {
      typename Types<T>::V y[kTogether] = {};
      for (int i = 0; i < least(kTogether, width - column); ++i) y[i] = load(first + i * kColumns + v);
#pragma GCC unroll 12
      for (int sum = 0; sum < kSums; ++sum) {
        if (p.first[sum] == p.first[sum + 1]) continue;
        typename Types<T>::V total{};
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i)
          if (kOutputs[sum][i]) total += A(kOutputs[sum][i]) * y[i];
        store(total, sums + (sum * rows * across + g) * kColumns + v);
      }
    }
  }
}

// Sums of some blocks of positions, in the places of a packed weight.
template <class T>
void weight_gradient(const MaskedConv& p, Span span, Span parts, void* packed, void* scratch) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  auto* offsets = static_cast<Offset*>(scratch);
  auto* lines = offsets + round_up(4 * p.taps, 4);
  A* room = reinterpret_cast<A*>(lines + round_up(p.rows, 4));
  A* columns = room + patch_size<T>(p);
  const auto tile_of = [&](int64_t j) { return static_cast<A*>(packed) + j * tile_size<T>(p); };
  const auto sums_of = [&](A* tile, int64_t n, int64_t channel) { return tile + (n * p.in + channel) * kColumns; };
  for_weights(p, parts, [&](int64_t j, Span in) {
    for (int64_t n = 0; n < p.num_matrices; ++n)
      memset(sums_of(tile_of(j), n, in.begin), 0, sizeof(A) * (in.end - in.begin) * kColumns);
    if (in.begin == 0) memset(sums_of(tile_of(j), p.num_matrices, 0), 0, sizeof(A) * kColumns);
  });
  for (int64_t n = span.begin; n < span.end; ++n) {
    const Block block = locate(p, n);
    const Patch<A> patch = make_patch<T>(p, block, room, offsets);
    const int64_t rows = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
    const int64_t steps = groups(p, width), part = rows * steps * kColumns;
    for (int64_t y = 0; y < rows; ++y) lines[y] = {y * patch.row, y * steps * kColumns};
    int64_t ready = -1;
    for_weights(p, parts, [&](int64_t j, Span in) {
      A* tile = tile_of(j);
      A* of_sums = p.together > 1 ? columns + rows * width * kColumns : columns;  // the gradient of each sum
      if (j != ready) {
        copy_patch<T>(p, p.result, block, j * kColumns, least(kColumns, p.out - j * kColumns), columns, kColumns);
        if (p.together > 1) put_sum_gradients<T>(p, rows, width, columns, of_sums);
      }
      ready = j;
      for (int64_t sum = 0; sum < kSums; ++sum)
        for (int64_t n = p.first[sum]; n < p.first[sum + 1]; ++n) {
          A* sums = sums_of(tile, p.products[n].matrix, in.begin);
          multiply<typename Types<T>::Product>(
              in.end - in.begin, {sums, kColumns, patch.at + offsets[n].row + in.begin, of_sums + sum * part, lines,
                                  rows, steps, 1, patch.step, sums, kColumns});
        }
      if (in.begin > 0) return;
      A* bias = sums_of(tile, p.num_matrices, 0);
      for (int v = 0; v < kVectors; ++v) {
        auto sum = load(bias + v * kLanes);
        for (int64_t i = 0; i < rows * width; ++i) sum += load(columns + i * kColumns + v * kLanes);
        store(sum, bias + v * kLanes);
      }
    });
  }
}

// The gradients, from the sums of all shares of the blocks: packed weights, side by side.
template <class T>
void put_gradient(const MaskedConv& p, Span parts, int64_t shares, const void* packed) {
  using A = typename Types<T>::A;
  constexpr int kColumns = Types<T>::kColumns;
  const auto total = [&](int64_t j, int64_t row, A factor, A* to) {
    const A* from = static_cast<const A*>(packed) + j * tile_size<T>(p) + row * kColumns;
    for (int64_t share = 0; share < shares; ++share, from += tiles<T>(p) * tile_size<T>(p))
      for (int l = 0; l < kColumns; ++l) to[l] += factor * from[l];
  };
  for_weights(p, parts, [&](int64_t j, Span in) {
    const int64_t first = j * kColumns, count = least(kColumns, p.out - first);
    T* tile = static_cast<T*>(p.weight) + first * p.weight_out;
    for (int64_t i = in.begin; i < in.end; ++i)
      for (int64_t t = 0; t < p.taps; ++t) {
        A sums[kColumns] = {};
        for (int64_t n = 0; n < p.num_matrices; ++n)
          for (int k = 0; k < 3; ++k)
            if (const A factor = p.matrices[n].factors[k]; factor != 0 && p.matrices[n].taps[k] == p.tap[t])
              total(j, n * p.in + i, factor, sums);
        put(sums, count, tile + i * p.weight_in + p.tap[t], p.weight_out);
      }
    A sums[kColumns] = {};
    if (in.begin == 0) total(j, p.num_matrices * p.in, 1, sums), put(sums, count, static_cast<T*>(p.bias) + first, 1);
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
      T* to = static_cast<T*>(p.result.at) + place(p.result, sample, y, x);
      for (int v = 0; v < kVectors; ++v)
        if (const Lane of = lane<T>(p, j, v); of.count) store_part(sums[v], to + of.channel, of.count);
    });
  }
}

// As `weight_gradient`, for the tiles that begin in `parts`.
template <class T>
void embed_gradient(const MaskedConv& p, Span span, Span parts, void* packed) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for_weights(p, parts, [&](int64_t j, Span in) {
    if (in.begin > 0) return;
    A* tile = static_cast<A*>(packed) + j * tile_size<T>(p);
    memset(tile, 0, sizeof(A) * tile_size<T>(p));
    for_positions(p, span, [&](int64_t sample, int64_t y, int64_t x) {
      const T* from = static_cast<const T*>(p.result.at) + place(p.result, sample, y, x);
      for (int v = 0; v < kVectors; ++v) {
        const Lane of = lane<T>(p, j, v);
        if (!of.count) continue;
        const auto grad = load_part<typename Types<T>::V>(from + of.channel, of.count);
        const auto add = [&](int64_t row) {
          A* sum = tile + row * kColumns + v * kLanes;
          store(load(sum) + grad, sum);
        };
        for (int64_t t = 0; t < p.taps; ++t) add(picked(p, sample, y, x, t));  // unseen: to where nobody looks
        add(p.taps * p.in);
      }
    });
  });
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
  const int64_t of_sums = p.together > 1 ? kSums * p.rows * groups(p, p.columns) : 0;
  const int64_t numbers = patch_size<T>(p) + (p.rows * p.columns + of_sums) * Types<T>::kColumns;
  const int64_t offsets = round_up(4 * p.taps, 4) + round_up(p.rows, 4);
  return int64_t(sizeof(Offset)) * offsets + int64_t(sizeof(typename Types<T>::A)) * numbers;
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
    [](const MaskedConv& p) { return VQFAST_BY_TYPE(tiles<T>(p) * row_blocks(p)); },
    [](const MaskedConv& p, Span blocks, Span parts, void* packed, void* scratch) {
      VQFAST_BY_TYPE(p.codes ? embed_gradient<T>(p, blocks, parts, packed)
                             : weight_gradient<T>(p, blocks, parts, packed, scratch));
    },
    [](const MaskedConv& p, Span parts, int64_t shares, const void* packed) {
      VQFAST_BY_TYPE(put_gradient<T>(p, parts, shares, packed));
    },
    [](const MaskedConv& p, Span blocks) { VQFAST_BY_TYPE(gate<T>(p, blocks)); },
};

}  // namespace vqfast::VQFAST_ISA
