// A patch: what the taps of a block of positions read, copied channels last, or views of it.
#pragma once

#include "masked_conv/multiply.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Copies `count` channels of a grid at a block of positions, which may reach beyond the grid, to (positions, pitch).
// Numbers are 0 outside the grid, and behind the channels up to a whole register.
template <class T>
[[gnu::noinline]] void copy_patch_of(
    const MaskedConvProblem& p, const Grid& g, const PositionBlock& at, int64_t channel, int64_t count,
    typename Types<T>::A* to, int64_t pitch) {
  using A = typename Types<T>::A;
  using V = typename Types<T>::V;
  constexpr int kLanes = Types<T>::kLanes;
  const int64_t columns = at.columns.end - at.columns.begin;
  const int64_t first = min(columns, max(0, -at.columns.begin));
  const int64_t inside = max(0, min(p.width, at.columns.end) - max(0, at.columns.begin));
  const auto line = [&](int64_t y) { return to + ((y - at.rows.begin) * columns + first) * pitch; };
  const auto source = [&](int64_t y, int64_t c) {
    return static_cast<const T*>(g.at) + at.sample * g.sample + y * g.row + (at.columns.begin + first) * g.column +
           (channel + c) * g.channel;
  };
  const Span seen{max(0, at.rows.begin), inside ? min(p.height, at.rows.end) : 0};
  for (int64_t y = at.rows.begin; y < at.rows.end; ++y) {
    const bool out = y < seen.begin || y >= seen.end;
    memset(line(y) - first * pitch, 0, sizeof(A) * (out ? columns : first) * pitch);
    if (!out) memset(line(y) + inside * pitch, 0, sizeof(A) * (columns - first - inside) * pitch);
  }
  if (g.channel == 1) {
    for (int64_t y = seen.begin; y < seen.end; ++y) {
      const T* from = source(y, 0);
      A* into = line(y);
      for (int64_t x = 0; x < inside; ++x, from += g.column, into += pitch)
        for (int64_t c = 0; c < count; c += kLanes) store(load_part<V>(from + c, count - c), into + c);
    }
    return;
  }
  for (int64_t c = 0; c < count; c += kLanes)  // the outermost loop, as each channel's rows are adjacent in memory
    for (int64_t y = seen.begin; y < seen.end; ++y)
      for (int64_t x = 0; x < inside; x += kLanes) {
        V m[kLanes];
        for (int l = 0; l < kLanes; ++l)
          m[l] = c + l < count ? load_part<V>(source(y, c + l) + x, inside - x) : V{};
        transpose(m);
        for (int l = 0; l < kLanes && x + l < inside; ++l) store(m[l], line(y) + (x + l) * pitch + c);
      }
}
template <class A>
void copy_patch(const MaskedConvProblem& p, const Grid& g, const PositionBlock& at, int64_t channel, int64_t count,
                A* to, int64_t pitch) {
  with_precision_in<A>(p.precision, [&](auto number) {
    copy_patch_of<decltype(number)>(p, g, at, channel, count, to, pitch);
  });
}

// What the products of a block read, and the distances of its rows and of positions, or clusters, that are computed one
// after another.
template <class A>
struct Patch {
  const A* at;
  int64_t row, step;
};

// Whether x itself can be read: as it is channels last, of the right type, and taps read their own position alone.
bool in_place(const MaskedConvProblem& p) {
  return !is_narrow(p) && p.x.channel == 1 && Reach(p).none();
}

// The distance of positions in a patch. It isn't a power of two, whose multiples would compete for few places in L1.
template <class A>
int64_t patch_pitch(const MaskedConvProblem& p) {
  return round_up(p.in_channels, Types<A>::kLanes) + Types<A>::kLanes;
}

// Clusters of so many columns.
int64_t clusters(const MaskedConvProblem& p, int64_t columns) { return ceil_div(columns, p.cluster); }

// Rows of the views of a set, for so many rows of positions.
int64_t rows_of_views(const ViewSet& view_set, int64_t rows) { return rows + view_set.bottom - view_set.top; }

// All positions that the taps of a block read.
PositionBlock seen(const MaskedConvProblem& p, const PositionBlock& block) {
  const Reach reach(p);
  const int64_t last = block.columns.begin + p.cluster * (clusters(p, block.columns.end - block.columns.begin) - 1);
  int64_t end = block.columns.end + reach.right;
  for (int64_t l = 0; l < p.num_view_sets; ++l)
    end = max(end, last + p.view_sets[l].dx + kRunKinds[p.view_sets[l].kind].inputs);
  return {block.sample,
          {block.rows.begin + reach.top, block.rows.end + reach.bottom},
          {block.columns.begin + reach.left, end}};
}

// The numbers of x that views are made of at a time: a row, or kLanes channels.
int64_t raw_size(const MaskedConvProblem& p) {
  const PositionBlock all = seen(p, {0, {0, p.block_rows}, {0, p.block_columns}});
  const int64_t columns = all.columns.end - all.columns.begin;
  return columns * max((all.rows.end - all.rows.begin) * kLanes, round_up(p.in_channels, kLanes));
}

// Those numbers for the views of a set: the first, the distances of rows and columns, and the numbers of rows and
// clusters.
struct Raw {
  const float* at;
  int64_t row, column;
  int64_t rows, clusters;
};

// The size of a block's patch in numbers.
template <class A>
int64_t patch_size(const MaskedConvProblem& p) {
  if (p.codes || in_place(p)) return 0;
  const PositionBlock all = seen(p, {0, {0, p.block_rows}, {0, p.block_columns}});
  const int64_t positions = (all.rows.end - all.rows.begin) * (all.columns.end - all.columns.begin);
  if (p.cluster == 1) return positions * patch_pitch<A>(p);
  int64_t views = 0;
  for (int64_t l = 0; l < p.num_view_sets; ++l)
    views += kRunKinds[p.view_sets[l].kind].views * rows_of_views(p.view_sets[l], p.block_rows);
  return raw_size(p) + views * clusters(p, p.block_columns) * patch_pitch<A>(p);
}

// Makes one register of channels of all views of a kind. `view` is the distance of views, `pitch` that of clusters.
template <int kKind>
void make_views(const Raw& x, float* to, int64_t view, int64_t pitch) {
  constexpr const RunKind& kind = kRunKinds[kKind];
  for (int64_t n = 0; n < x.rows * x.clusters; ++n) {
    const float* column = x.at + n / x.clusters * x.row + n % x.clusters * kCluster * x.column;
    Floats d[kind.inputs];
#pragma GCC unroll 6
    for (int i = 0; i < kind.inputs; ++i) d[i] = load(column + i * x.column);
#pragma GCC unroll 8
    for (int v = 0; v < kind.views; ++v) {
      Floats sum{};
      bool any = false;
#pragma GCC unroll 6
      for (int i = 0; i < kind.inputs; ++i) {
        if (kind.view[v].inputs[i] == 0) continue;
        sum = any ? sum + kind.view[v].inputs[i] * d[i] : kind.view[v].inputs[i] * d[i];
        any = true;
      }
      store(sum, to + v * view + n * pitch);
    }
  }
}

// Makes all views of a block. x is read once, in pieces that stay in L1: a row, or kLanes channels, whichever is
// adjacent in memory.
void make_all_views(const MaskedConvProblem& p, const PositionBlock& block, float* room) {
  const PositionBlock all = seen(p, block);
  const int64_t height = all.rows.end - all.rows.begin, width = all.columns.end - all.columns.begin;
  const int64_t rows = block.rows.end - block.rows.begin, across = clusters(p, block.columns.end - block.columns.begin);
  const int64_t pitch = patch_pitch<float>(p), pieces = ceil_div(p.in_channels, kLanes);
  const bool by_row = p.x.channel == 1;
  for (int64_t n = 0; n < (by_row ? height : pieces); ++n) {
    const Span lines = by_row ? Span{n, n + 1} : Span{0, height};
    const Span channels = by_row ? Span{0, p.in_channels} : Span{n * kLanes, min(p.in_channels, (n + 1) * kLanes)};
    const int64_t column = round_up(channels.end - channels.begin, kLanes);
    const PositionBlock part{all.sample, {all.rows.begin + lines.begin, all.rows.begin + lines.end}, all.columns};
    copy_patch(p, p.x, part, channels.begin, channels.end - channels.begin, room, column);
    float* to = room + raw_size(p);
    for (const ViewSet* view_set = p.view_sets; view_set < p.view_sets + p.num_view_sets; ++view_set) {
      const int64_t first = block.rows.begin + view_set->top, count = rows_of_views(*view_set, rows);
      const Span mine{max(first, part.rows.begin), min(first + count, part.rows.end)};
      const int64_t left = block.columns.begin + view_set->dx - all.columns.begin;
      const float* corner = room + ((mine.begin - part.rows.begin) * width + left) * column;
      for (int64_t c = channels.begin; c < channels.end; c += kLanes, corner += kLanes) {
        const Raw here{corner, width * column, column, mine.end - mine.begin, across};
        float* const at = to + (mine.begin - first) * across * pitch + c;
        const int64_t view = count * across * pitch;
        switch (view_set->kind) {
          case kLone: make_views<kLone>(here, at, view, pitch); break;
          case kTwo: make_views<kTwo>(here, at, view, pitch); break;
          case kThree: make_views<kThree>(here, at, view, pitch); break;
          default: make_views<kWide>(here, at, view, pitch);
        }
      }
      to += kRunKinds[view_set->kind].views * count * across * pitch;
    }
  }
}

// Makes the patch of a block, in `room` of patch_size, and the offsets of all products for its first position.
template <class A>
Patch<A> make_patch(const MaskedConvProblem& p, const PositionBlock& block, A* room, Offset* offsets) {
  const int64_t rows = block.rows.end - block.rows.begin, across = clusters(p, block.columns.end - block.columns.begin);
  const int64_t pitch = patch_pitch<A>(p);
  const PositionBlock all = seen(p, block);
  const auto put = [&](int64_t n, int64_t row) {
    offsets[n] = {row, p.products[n].matrix * p.in_channels * Types<A>::kColumns};
  };
  Patch<A> patch{room, (all.columns.end - all.columns.begin) * pitch, pitch};
  if constexpr (__is_same(A, float))
    if (p.cluster > 1) {
      make_all_views(p, block, room);
      patch.row = across * pitch;
      int64_t at = raw_size(p);
      for (int64_t l = 0; l < p.num_view_sets; ++l) {
        const int64_t count = rows_of_views(p.view_sets[l], rows);
        for (int64_t n = 0; n < p.first_product[kSums]; ++n)
          if (const ConvProduct& product = p.products[n]; product.view_set == l)
            put(n, at + (product.view * count + product.dy - p.view_sets[l].top) * patch.row);
        at += kRunKinds[p.view_sets[l].kind].views * count * patch.row;
      }
      return patch;
    }
  if (in_place(p)) {
    const A* at = static_cast<const A*>(p.x.at) + block.sample * p.x.sample;
    patch = {at + block.rows.begin * p.x.row + block.columns.begin * p.x.column, p.x.row, p.x.column};
  } else {
    copy_patch(p, p.x, all, 0, p.in_channels, room, pitch);
    patch.at += (block.rows.begin - all.rows.begin) * patch.row + (block.columns.begin - all.columns.begin) * pitch;
  }
  for (int64_t n = 0; n < p.first_product[kSums]; ++n)
    put(n, p.products[n].dy * patch.row + p.products[n].dx * patch.step);
  return patch;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
