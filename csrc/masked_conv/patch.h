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
  bool fits = true;  // not so if a number is too large for tiles
};

// Whether x itself can be read: as it is channels last, of the right type, and taps read their own position alone.
bool in_place(const MaskedConvProblem& p) {
  return !p.tiled && !is_narrow(p) && p.x.channel == 1 && Reach(p).none();
}

// The distance of positions in a patch. It isn't a power of two, whose multiples would compete for few places in L1.
template <class A>
int64_t patch_pitch(const MaskedConvProblem& p) {
  return round_up(words(p, p.in_channels), Types<A>::kLanes) + Types<A>::kLanes;
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

// Whether products read views, or else x itself.
bool has_views(const MaskedConvProblem& p) { return p.cluster > 1 || p.tiled; }

// Views side by side: one for each cluster, or each position that taps read.
int64_t views_across(const MaskedConvProblem& p, const PositionBlock& block) {
  const PositionBlock all = seen(p, block);
  return p.cluster > 1 ? clusters(p, block.columns.end - block.columns.begin) : all.columns.end - all.columns.begin;
}

// The channels of which views are made at a time, and the numbers of x for them: a row, or so many channels.
int64_t channels_at_once(const MaskedConvProblem& p) { return p.tiled ? kBlockChannels : kLanes; }
int64_t raw_size(const MaskedConvProblem& p) {
  const PositionBlock all = seen(p, {0, {0, p.block_rows}, {0, p.block_columns}});
  const int64_t columns = all.columns.end - all.columns.begin, step = channels_at_once(p);
  return columns * max((all.rows.end - all.rows.begin) * step, round_up(p.in_channels, step));
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
  if (!has_views(p)) return positions * patch_pitch<A>(p);
  int64_t views = 0;
  for (int64_t l = 0; l < p.num_view_sets; ++l)
    views += kRunKinds[p.view_sets[l].kind].views * rows_of_views(p.view_sets[l], p.block_rows);
  return raw_size(p) + views * views_across(p, {0, {0, p.block_rows}, {0, p.block_columns}}) * patch_pitch<A>(p);
}

// Makes all views of a kind, for one register of channels or, in pieces, for two. `view` is the distance of views,
// `pitch` that of clusters.
template <int kKind, bool kPieces>
void make_views(const Raw& x, int64_t cluster, float* to, int64_t view, int64_t pitch) {
  constexpr const RunKind& kind = kRunKinds[kKind];
  for (int64_t n = 0; n < x.rows * x.clusters; ++n) {
    const float* column = x.at + n / x.clusters * x.row + n % x.clusters * cluster * x.column;
    Floats d[1 + kPieces][kind.inputs];
#pragma GCC unroll 2
    for (int h = 0; h < 1 + kPieces; ++h)
#pragma GCC unroll 6
      for (int i = 0; i < kind.inputs; ++i) d[h][i] = load(column + i * x.column + h * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < kind.views; ++v) {
      Floats sums[1 + kPieces] = {};
#pragma GCC unroll 2
      for (int h = 0; h < 1 + kPieces; ++h) {
        bool any = false;
#pragma GCC unroll 6
        for (int i = 0; i < kind.inputs; ++i) {
          if (kind.view[v].inputs[i] == 0) continue;
          const Floats term = kind.view[v].inputs[i] * d[h][i];
          sums[h] = any ? sums[h] + term : term;
          any = true;
        }
      }
      if constexpr (kPieces)
        store_pieces(sums[0], sums[1], to + v * view + n * pitch, kLanes);
      else
        store(sums[0], to + v * view + n * pitch);
    }
  }
}
template <bool kPieces>
void make_views(int64_t kind, const Raw& x, float* to, int64_t view, int64_t pitch) {
  switch (kind) {
    case kLone: return make_views<kLone, kPieces>(x, kCluster, to, view, pitch);
    case kTwo: return make_views<kTwo, kPieces>(x, kCluster, to, view, pitch);
    case kThree: return make_views<kThree, kPieces>(x, kCluster, to, view, pitch);
    case kWide: return make_views<kWide, kPieces>(x, kCluster, to, view, pitch);
    default:
      if constexpr (kHasTiles) make_views<kSelf, kPieces>(x, 1, to, view, pitch);
  }
}

// Makes all views of a block. x is read once, in parts that stay in L1: a row, or a few channels, whichever is
// adjacent in memory. Returns false if a number is too large for tiles.
bool make_all_views(const MaskedConvProblem& p, const PositionBlock& block, float* room) {
  const PositionBlock all = seen(p, block);
  const int64_t height = all.rows.end - all.rows.begin, width = all.columns.end - all.columns.begin;
  const int64_t rows = block.rows.end - block.rows.begin, across = views_across(p, block);
  const int64_t pitch = patch_pitch<float>(p), step = channels_at_once(p), steps = ceil_div(p.in_channels, step);
  const bool by_row = p.x.channel == 1;
  // Pieces are of whole blocks of channels.
  if (p.tiled && p.in_channels % step) memset(room, 0, sizeof(float) * raw_size(p));
  for (int64_t n = 0; n < (by_row ? height : steps); ++n) {
    const Span lines = by_row ? Span{n, n + 1} : Span{0, height};
    const Span channels = by_row ? Span{0, p.in_channels} : Span{n * step, min(p.in_channels, (n + 1) * step)};
    const int64_t column = round_up(channels.end - channels.begin, step);
    const PositionBlock part{all.sample, {all.rows.begin + lines.begin, all.rows.begin + lines.end}, all.columns};
    copy_patch(p, p.x, part, channels.begin, channels.end - channels.begin, room, column);
    if (p.tiled && !fit(room, (lines.end - lines.begin) * width * column)) return false;
    float* to = room + raw_size(p);
    for (const ViewSet* view_set = p.view_sets; view_set < p.view_sets + p.num_view_sets; ++view_set) {
      const int64_t first = block.rows.begin + view_set->top, count = rows_of_views(*view_set, rows);
      const Span mine{max(first, part.rows.begin), min(first + count, part.rows.end)};
      const int64_t left = block.columns.begin + view_set->dx - all.columns.begin;
      const float* corner = room + ((mine.begin - part.rows.begin) * width + left) * column;
      const int64_t view = count * across * pitch;
      for (int64_t c = channels.begin; c < channels.end; c += step, corner += step) {
        const Raw here{corner, width * column, column, mine.end - mine.begin, across};
        float* const at = to + (mine.begin - first) * across * pitch + words(p, c);
        if (kHasTiles && p.tiled)
          make_views<kHasTiles>(view_set->kind, here, at, view, pitch);
        else
          make_views<false>(view_set->kind, here, at, view, pitch);
      }
      to += kRunKinds[view_set->kind].views * view;
    }
  }
  return true;
}

// Makes the patch of a block, in `room` of patch_size, and the offsets of all products for its first position.
template <class A>
Patch<A> make_patch(const MaskedConvProblem& p, const PositionBlock& block, A* room, Offset* offsets) {
  const int64_t rows = block.rows.end - block.rows.begin, across = views_across(p, block);
  const int64_t pitch = patch_pitch<A>(p);
  const PositionBlock all = seen(p, block);
  const auto put = [&](int64_t n, int64_t row) {
    offsets[n] = {row, p.products[n].matrix * words(p, p.in_channels) * Types<A>::kColumns};
  };
  Patch<A> patch{room, (all.columns.end - all.columns.begin) * pitch, pitch};
  if constexpr (__is_same(A, float))
    if (has_views(p)) {
      patch.fits = make_all_views(p, block, room);
      patch.row = across * pitch;
      int64_t at = raw_size(p);
      for (int64_t l = 0; l < p.num_view_sets; ++l) {
        const int64_t count = rows_of_views(p.view_sets[l], rows);
        for (int64_t n = 0; n < p.first_product[kSums]; ++n)
          if (const ConvProduct& product = p.products[n]; product.view_set == l)
            put(n, at + (product.view * count + product.dy - p.view_sets[l].top) * patch.row +
                       (p.cluster > 1 ? 0 : product.dx - p.view_sets[l].dx) * pitch);
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
