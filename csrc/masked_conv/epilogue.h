// What follows the sums: other tensors are added, the activation is applied, and results are written in any layout.
#pragma once

#include "masked_conv/positions.h"
#include "simd/activate.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The offset of a position in a grid, in numbers.
int64_t place(const Grid& g, int64_t sample, int64_t y, int64_t x) {
  return sample * g.sample + y * g.row + x * g.column;
}
int64_t place(const Grid& g, const PositionBlock& b) { return place(g, b.sample, b.rows.begin, b.columns.begin); }

// The numbers of a grid at some positions and channels, as lines: the channels of a position if it is channels last,
// else the positions of a channel.
template <class T>
struct Lines {
  T* at;
  int64_t line, inside;  // distances of lines, and of numbers in a line; 0 where a number repeats
  Lines(const Grid& g, bool last, const PositionBlock& b, int64_t channel)
      : at(static_cast<T*>(g.at)), line(last ? g.column : g.channel), inside(last ? g.channel : g.column) {
    if (at) at += place(g, b) + channel * g.channel;
  }
  template <class V>
  [[gnu::always_inline]] V read(int64_t l, int64_t i, int64_t count) const {
    using A = typename Types<std::remove_const_t<T>>::A;
    return inside ? load_part<V>(at + l * line + i, count) : V{} + A(at[l * line]);
  }
  template <class V>
  [[gnu::always_inline]] void write(V v, int64_t l, int64_t i, int64_t count) const {
    store_part(v, at + l * line + i, count);
  }
};

// Turns sums into the result, for `channels` channels from `channel` on. sums: lines as those of the result, `pitch`
// apart; the second halves of a gate's channels are `second` further. kEpilogue relu stands for none too.
template <class T, Epilogue kEpilogue, class S>
[[gnu::noinline]] void activate(
    const MaskedConvProblem& p, const PositionBlock& b, int64_t channel, int64_t channels, const S* sums, int64_t pitch,
    int64_t second) {
  using V = typename Types<T>::V;
  constexpr int kLanes = Types<T>::kLanes;
  constexpr bool kPaired = kEpilogue == Epilogue::gate || kEpilogue == Epilogue::gate_gradient;
  const bool last = p.result.channel == 1;
  const int64_t positions = b.columns.end - b.columns.begin;
  const int64_t lines = last ? positions : channels, length = last ? channels : positions;
  const Lines<const T> residual(p.residual, last, b, channel);
  const Lines<const T> extra[2] = {{p.extra, last, b, channel}, {p.extra, last, b, channel + p.out_channels / 2}};
  const Lines<T> kept[2] = {{p.kept, last, b, channel}, {p.kept, last, b, channel + p.out_channels / 2}};
  const Lines<T> result[2] = {{p.result, last, b, channel}, {p.result, last, b, channel + p.out_channels / 2}};
  const V lowest = V{} - (p.epilogue == Epilogue::relu ? 0 : __builtin_inff());
  for (int64_t l = 0; l < lines; ++l)
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t count = min(kLanes, length - i);
      V sum[2];
#pragma GCC unroll 2
      for (int v = 0; v < 1 + kPaired; ++v) {
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
      if constexpr (kEpilogue == Epilogue::relu) value = value < lowest ? lowest : value;
      if constexpr (kEpilogue == Epilogue::gate) value = gated(sum[0], sum[1]);
      if (p.residual.at) value += residual.template read<V>(l, i, count);
      result[0].write(value, l, i, count);
    }
}

// For the sums of a convolution.
template <class A>
void activate(const MaskedConvProblem& p, const PositionBlock& b, int64_t channel, int64_t channels, const A* sums,
              int64_t pitch, int64_t second) {
  with_precision_in<A>(p.precision, [&](auto number) {
    using T = decltype(number);
    const bool gate = p.epilogue == Epilogue::gate;
    const auto call = gate ? activate<T, Epilogue::gate, A> : activate<T, Epilogue::relu, A>;
    call(p, b, channel, channels, sums, pitch, second);
  });
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
