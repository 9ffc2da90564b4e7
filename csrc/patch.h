// What a block of positions sees, copied channels last.
#pragma once

#include "blocks.h"

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

}  // namespace
}  // namespace vqfast::VQFAST_ISA
