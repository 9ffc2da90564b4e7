// A tile's sums over several products: the call of the inner loop.
#pragma once

#include "simd/tile.h"
#include "masked_conv/winograd.h"

namespace vqfast::VQFAST_ISA {
namespace {

template <class Arithmetic, int kR>
void multiply(const SumOfProducts<typename Arithmetic::Element>& w) {
  Sums<Arithmetic, kR> sums;
  using S = Sums<Arithmetic, kR>;
  sums.start(w.from, w.from_stride);
  for (int64_t i = 0; i < w.products; ++i)
    sums.add(w.steps, w.rows + w.offsets[i].row, w.row_stride, w.step_stride, w.columns + w.offsets[i].column);
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
    for (int v = 0; v < kTileRegisters; ++v) store(sums.of[r][v], w.to + r * w.to_stride + v * S::kLanes);
}

template <class Arithmetic, int... kI>
void multiply_rows(int64_t rows, const SumOfProducts<typename Arithmetic::Element>& w,
                   std::integer_sequence<int, kI...>) {
  static constexpr void (*kOf[])(const SumOfProducts<typename Arithmetic::Element>&) = {
      multiply<Arithmetic, kI + 1>...};
  kOf[rows - 1](w);
}

// For 1 to kMaxRows rows.
template <class Arithmetic>
void multiply(int64_t rows, const SumOfProducts<typename Arithmetic::Element>& w) {
  multiply_rows<Arithmetic>(rows, w, std::make_integer_sequence<int, kMaxRows>{});
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
