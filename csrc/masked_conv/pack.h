// The packed weight: tiles of output channels, and which channels each register of a tile has.
#pragma once

#include "masked_conv/positions.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The channels that one register of a tile has: the first, and how many. Before a gate the two registers of a tile have
// channels of the first half and, in the same lanes, of the second.
struct ChannelRun {
  int64_t channel, count;
};

template <class T>
ChannelRun channel_run(const MaskedConvProblem& p, int64_t tile, int v) {
  constexpr int kLanes = Types<T>::kLanes;
  const int64_t half = p.out_channels / 2;
  if (p.epilogue == Epilogue::gate) return {v * half + tile * kLanes, min(kLanes, half - tile * kLanes)};
  const int64_t channel = (tile * kTileRegisters + v) * kLanes;
  return {channel, max(0, min(kLanes, p.out_channels - channel))};
}

// Tiles that the output channels take.
template <class T>
int64_t tiles(const MaskedConvProblem& p) {
  const bool gate = p.epilogue == Epilogue::gate;
  return ceil_div(gate ? p.out_channels / 2 : p.out_channels, gate ? Types<T>::kLanes : Types<T>::kColumns);
}

// The size of a packed tile in numbers: its matrices (num_matrices, in_channels, kColumns), its bias (kColumns), and as
// many zeros, with which some sums begin.
template <class T>
int64_t tile_size(const MaskedConvProblem& p) {
  return (p.num_matrices * words(p, p.in_channels) + 2) * Types<T>::kColumns;
}

// A register of `count` numbers that are `stride` apart; other lanes are 0.
template <class T>
[[gnu::always_inline]] inline typename Types<T>::V gather(const T* from, int64_t stride, int64_t count) {
  typename Types<T>::A numbers[Types<T>::kLanes] = {};
  for (int64_t l = 0; l < count; ++l) numbers[l] = typename Types<T>::A(from[l * stride]);
  return load(numbers);
}

// Packs some tiles: for each product its combination of the taps' matrices. Returns false if a number is too large for
// the CPU's tiles.
template <class T>
bool pack(const MaskedConvProblem& p, Span span, void* packed) {
  using A = typename Types<T>::A;
  constexpr int kLanes = Types<T>::kLanes, kColumns = Types<T>::kColumns;
  for (int64_t j = span.begin; j < span.end; ++j) {
    A* tile = static_cast<A*>(packed) + j * tile_size<T>(p);
    memset(tile, 0, sizeof(A) * tile_size<T>(p));
    for (int v = 0; v < kTileRegisters; ++v) {
      const ChannelRun to = channel_run<T>(p, j, v);
      A* column = tile + v * kLanes;
      if (!to.count) continue;
      struct Taps {  // those that were gathered last: the matrices of a run have the same
        const T* at[3] = {};
        typename Types<T>::V of[3];
      } taps[2];
      const auto entry = [&](int64_t n, int64_t i, Taps& last) {
        const T* from = static_cast<const T*>(p.weight) + to.channel * p.weight_out_stride + i * p.weight_in_stride;
        typename Types<T>::V sum{};
        for (int k = 0; k < 3 && i < p.in_channels; ++k)
          if (const float factor = p.matrices[n].factors[k]) {
            const T* at = from + p.matrices[n].taps[k];
            if (at != last.at[k]) last.at[k] = at, last.of[k] = gather<T>(at, p.weight_out_stride, to.count);
            sum += factor * last.of[k];
          }
        return sum;
      };
      const int64_t size = words(p, p.in_channels) * kColumns;
      const T* bias = static_cast<const T*>(p.bias) + to.channel;
      if (p.bias) store(gather<T>(bias, 1, to.count), column + p.num_matrices * size);
      if constexpr (kHasTiles && __is_same(T, float))
        if (p.tiled) {
          for (int64_t i = 0; i < p.in_channels; i += i % kLanes == kLanes - 1 ? kLanes + 1 : 1)
            for (int64_t n = 0; n < p.num_matrices; ++n) {
              const Floats pair[] = {entry(n, i, taps[0]), entry(n, i + kLanes, taps[1])};
              if (!fit((const float*)pair, kBlockChannels)) return false;
              const int64_t row = words(p, i / kBlockChannels * kBlockChannels) + i % kLanes;
              store_pieces(pair[0], pair[1], column + n * size + row * kColumns, kLanes * kColumns);
            }
          continue;
        }
      for (int64_t i = 0; i < p.in_channels; ++i)
        for (int64_t n = 0; n < p.num_matrices; ++n) store(entry(n, i, taps[0]), column + n * size + i * kColumns);
    }
  }
  return true;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
