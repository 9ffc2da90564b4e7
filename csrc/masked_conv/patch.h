// What a block of positions sees, copied channels last.
#pragma once

#include "masked_conv/blocks.h"

namespace vqfast::VQFAST_ISA {
namespace {

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
    for (int64_t y = seen.begin; y < seen.end; ++y) {
      const T* from = source(y, 0);
      A* into = line(y);
      for (int64_t x = 0; x < inside; ++x, from += g.column, into += pitch)
        for (int64_t c = 0; c < count; c += kLanes) store(load_part<V>(from + c, count - c), into + c);
    }
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

// What the products of a block of positions read: x itself, or views of it.
template <class A>
struct Patch {
  const A* at;
  int64_t row, step;  // distances of rows, and of what is computed at once
};

// Where the rows and the columns of a product begin.
struct Offset {
  int64_t row, column;
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

// Groups of positions that are computed together, side by side.
int64_t groups(const MaskedConv& p, int64_t columns) { return ceil_div(columns, p.together); }

int64_t look_rows(const Look& look, int64_t rows) { return rows + look.bottom - look.top; }

// All that is seen of a block.
Block seen(const MaskedConv& p, const Block& block) {
  const Reach reach(p);
  const int64_t last = block.columns.begin + p.together * (groups(p, block.columns.end - block.columns.begin) - 1);
  int64_t end = block.columns.end + reach.right;
  for (int64_t l = 0; l < p.num_looks; ++l) end = most(end, last + p.looks[l].dx + kKinds[p.looks[l].kind].inputs);
  return {block.sample,
          {block.rows.begin + reach.top, block.rows.end + reach.bottom},
          {block.columns.begin + reach.left, end}};
}

// Numbers of x before they are looked at.
template <class T>
int64_t raw_size(const MaskedConv& p) {
  const Block all = seen(p, {0, {0, p.rows}, {0, p.columns}});
  const int64_t columns = all.columns.end - all.columns.begin;
  return columns * most((all.rows.end - all.rows.begin) * kLanes, round_up(p.in, kLanes));
}

struct Raw {
  const float* at;
  int64_t row, column;  // distances
  int64_t rows, groups;
};

template <class T>
int64_t patch_size(const MaskedConv& p) {
  if (p.codes || in_place<T>(p)) return 0;
  const Block all = seen(p, {0, {0, p.rows}, {0, p.columns}});
  const int64_t positions = (all.rows.end - all.rows.begin) * (all.columns.end - all.columns.begin);
  if (p.together == 1) return positions * patch_pitch<T>(p);
  int64_t views = 0;
  for (int64_t l = 0; l < p.num_looks; ++l)
    views += kKinds[p.looks[l].kind].views * look_rows(p.looks[l], p.rows);
  return raw_size<T>(p) + views * groups(p, p.columns) * patch_pitch<T>(p);
}

// A vector of channels of all views of some rows of groups.
template <int kKind>
void make_views(const Raw& x, float* to, int64_t view, int64_t pitch) {
  constexpr const Kind& kind = kKinds[kKind];
  for (int64_t n = 0; n < x.rows * x.groups; ++n) {
    const float* column = x.at + n / x.groups * x.row + n % x.groups * kTogether * x.column;
    Vec d[kind.inputs];
#pragma GCC unroll 6
    for (int i = 0; i < kind.inputs; ++i) d[i] = load(column + i * x.column);
#pragma GCC unroll 8
    for (int v = 0; v < kind.views; ++v) {
      Vec sum{};
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

// All looks at a block's x, which stays in L1 for it: a row, or some channels, whichever lies side by side in memory.
template <class T>
void make_looks(const MaskedConv& p, const Block& block, float* room) {
  const Block all = seen(p, block);
  const int64_t height = all.rows.end - all.rows.begin, width = all.columns.end - all.columns.begin;
  const int64_t rows = block.rows.end - block.rows.begin, across = groups(p, block.columns.end - block.columns.begin);
  const int64_t pitch = patch_pitch<T>(p), vectors = ceil_div(p.in, kLanes);
  const bool by_row = p.x.channel == 1;
  for (int64_t n = 0; n < (by_row ? height : vectors); ++n) {
    const Span lines = by_row ? Span{n, n + 1} : Span{0, height};
    const Span channels = by_row ? Span{0, p.in} : Span{n * kLanes, least(p.in, (n + 1) * kLanes)};
    const int64_t column = round_up(channels.end - channels.begin, kLanes);
    const Block part{all.sample, {all.rows.begin + lines.begin, all.rows.begin + lines.end}, all.columns};
    copy_patch<T>(p, p.x, part, channels.begin, channels.end - channels.begin, room, column);
    float* to = room + raw_size<T>(p);
    for (const Look* look = p.looks; look < p.looks + p.num_looks; ++look) {
      const int64_t first = block.rows.begin + look->top, count = look_rows(*look, rows);
      const Span mine{most(first, part.rows.begin), least(first + count, part.rows.end)};
      const int64_t left = block.columns.begin + look->dx - all.columns.begin;
      const float* corner = room + ((mine.begin - part.rows.begin) * width + left) * column;
      for (int64_t c = channels.begin; c < channels.end; c += kLanes, corner += kLanes) {
        const Raw here{corner, width * column, column, mine.end - mine.begin, across};
        float* const at = to + (mine.begin - first) * across * pitch + c;
        const int64_t view = count * across * pitch;
        switch (look->kind) {
          case kLone: make_views<kLone>(here, at, view, pitch); break;
          case kTwo: make_views<kTwo>(here, at, view, pitch); break;
          case kThree: make_views<kThree>(here, at, view, pitch); break;
          default: make_views<kWide>(here, at, view, pitch);
        }
      }
      to += kKinds[look->kind].views * count * across * pitch;
    }
  }
}

// The patch of a block, and where the products of its first position begin in it.
template <class T>
Patch<typename Types<T>::A> make_patch(const MaskedConv& p, const Block& block, typename Types<T>::A* room,
                                       Offset* offsets) {
  using A = typename Types<T>::A;
  const int64_t rows = block.rows.end - block.rows.begin, across = groups(p, block.columns.end - block.columns.begin);
  const int64_t pitch = patch_pitch<T>(p);
  const Block all = seen(p, block);
  const auto put = [&](int64_t n, int64_t row) {
    offsets[n] = {row, p.products[n].matrix * p.in * Types<T>::kColumns};
  };
  Patch<A> patch{room, (all.columns.end - all.columns.begin) * pitch, pitch};
  if constexpr (__is_same(A, float))
    if (p.together > 1) {
      make_looks<T>(p, block, room);
      patch.row = across * pitch;
      int64_t at = raw_size<T>(p);
      for (int64_t l = 0; l < p.num_looks; ++l) {
        const int64_t count = look_rows(p.looks[l], rows);
        for (int64_t n = 0; n < p.first[kSums]; ++n)
          if (const Product& product = p.products[n]; product.look == l)
            put(n, at + (product.view * count + product.dy - p.looks[l].top) * patch.row);
        at += kKinds[p.looks[l].kind].views * count * patch.row;
      }
      return patch;
    }
  if (in_place<T>(p)) {
    const A* at = static_cast<const A*>(p.x.at) + block.sample * p.x.sample;
    patch = {at + block.rows.begin * p.x.row + block.columns.begin * p.x.column, p.x.row, p.x.column};
  } else {
    copy_patch<T>(p, p.x, all, 0, p.in, room, pitch);
    patch.at += (block.rows.begin - all.rows.begin) * patch.row + (block.columns.begin - all.columns.begin) * pitch;
  }
  for (int64_t n = 0; n < p.first[kSums]; ++n)
    put(n, p.products[n].dy * patch.row + p.products[n].dx * patch.step);
  return patch;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
