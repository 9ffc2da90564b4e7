// One-hot vectors, given as codes: a product with one picks a row of the weight.
#pragma once

#include "masked_conv/prefetch.h"
#include "masked_conv/weight_gradient.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The row of a packed tile that the code at tap t of a position picks; outside the grid the row of zeros.
int64_t picked(const MaskedConvProblem& p, int64_t sample, int64_t y, int64_t x, int64_t t) {
  y += p.dy[t], x += p.dx[t];
  if (y < 0 || y >= p.height || x < 0 || x >= p.width) return p.num_taps * p.in_channels + 1;
  return t * p.in_channels + p.codes[(sample * p.height + y) * p.width + x];
}

// f(sample, y, x) for each position of some blocks.
template <class F>
void for_positions(const MaskedConvProblem& p, Span span, F f) {
  for (int64_t n = span.begin; n < span.end; ++n) {
    const PositionBlock block = locate(p, n);
    for (int64_t y = block.rows.begin; y < block.rows.end; ++y)
      for (int64_t x = block.columns.begin; x < block.columns.end; ++x) f(block.sample, y, x);
  }
}

// The forward pass of codes, tile by tile: each stays in L2 while all positions pick from it.
template <class T>
void embed(const MaskedConvProblem& p, Span span, const void* packed) {
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for (int64_t j = 0; j < tiles<T>(p); ++j) {
    const auto* tile = static_cast<const typename Types<T>::A*>(packed) + j * tile_size<T>(p);
    for_positions(p, span, [&](int64_t sample, int64_t y, int64_t x) {
      typename Types<T>::V sums[kTileRegisters];
      for (int v = 0; v < kTileRegisters; ++v)
        sums[v] = load(tile + p.num_taps * p.in_channels * kColumns + v * kLanes);
      for (int64_t t = 0; t < p.num_taps; ++t) {
        const auto* row = tile + picked(p, sample, y, x, t) * kColumns;
        for (int v = 0; v < kTileRegisters; ++v) sums[v] += load(row + v * kLanes);
      }
      T* to = static_cast<T*>(p.result.at) + place(p.result, sample, y, x);
      for (int v = 0; v < kTileRegisters; ++v)
        if (const ChannelRun of = channel_run<T>(p, j, v); of.count) store_part(sums[v], to + of.channel, of.count);
    });
  }
}

// As `weight_gradient`, for the tiles whose first part is in `parts`.
template <class T>
void embed_gradient(const MaskedConvProblem& p, Span span, Span parts, void* packed) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for_weights(p, parts, [&](int64_t j, Span in) {
    if (in.begin > 0) return;
    A* tile = static_cast<A*>(packed) + j * tile_size<T>(p);
    memset(tile, 0, sizeof(A) * tile_size<T>(p));
    for_positions(p, span, [&](int64_t sample, int64_t y, int64_t x) {
      const T* from = static_cast<const T*>(p.result.at) + place(p.result, sample, y, x);
      for (int v = 0; v < kTileRegisters; ++v) {
        const ChannelRun of = channel_run<T>(p, j, v);
        if (!of.count) continue;
        const auto grad = load_part<typename Types<T>::V>(from + of.channel, of.count);
        const auto add = [&](int64_t row) {
          A* sum = tile + row * kColumns + v * kLanes;
          store(load(sum) + grad, sum);
        };
        // Outside the grid, the gradient goes to the row of zeros, which isn't read.
        for (int64_t t = 0; t < p.num_taps; ++t) add(picked(p, sample, y, x, t));
        add(p.num_taps * p.in_channels);
      }
    });
  });
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
