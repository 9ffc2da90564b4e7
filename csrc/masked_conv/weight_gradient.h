// The gradient of the weight and the bias: channels of x are the tile's rows, and its sums run over positions.
#pragma once

#include "masked_conv/multiply.h"
#include "masked_conv/pack.h"
#include "masked_conv/patch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Writes numbers in the problem's precision to `tensor`, from number `at` on, `stride` apart.
template <class A>
void put(const MaskedConvProblem& p, const A* from, int64_t count, void* tensor, int64_t at, int64_t stride) {
  with_precision_in<A>(p.precision, [&](auto number) {
    auto* to = static_cast<decltype(number)*>(tensor) + at;
    for (int64_t l = 0; l < count; ++l) store_part(typename Types<A>::V{} + from[l], to + l * stride, 1);
  });
}

// Runs of x's channels, of kMaxRows at most. A part of the weight is one run of one tile.
int64_t channel_runs(const MaskedConvProblem& p) { return ceil_div(p.in_channels, p.tiled ? kTiledRows : kMaxRows); }

// f(number of the tile, channels of x) for some parts of the weight.
template <class F>
void for_weights(const MaskedConvProblem& p, Span parts, F f) {
  for (int64_t n = parts.begin; n < parts.end; ++n)
    f(n / channel_runs(p), part_of(p.in_channels, channel_runs(p), n % channel_runs(p)));
}

// Makes the gradients of all sums, (kSums, rows, clusters, kColumns), of those of the outputs, (rows, width, kColumns).
void make_sum_gradients(
    const MaskedConvProblem& p, int64_t rows, int64_t width, const float* outputs, float* sums) {
  constexpr int kColumns = kTileColumns;
  const int64_t across = clusters(p, width);
  for (int64_t g = 0; g < rows * across; ++g) {
    const int64_t column = g % across * kCluster;
    const float* first = outputs + (g / across * width + column) * kColumns;
    for (int v = 0; v < kColumns; v += kLanes) {
      Floats y[kCluster] = {};
      for (int i = 0; i < min(kCluster, width - column); ++i) y[i] = load(first + i * kColumns + v);
#pragma GCC unroll 12
      for (int sum = 0; sum < kSums; ++sum) {
        if (p.first_product[sum] == p.first_product[sum + 1]) continue;
        Floats total{};
#pragma GCC unroll 4
        for (int i = 0; i < kCluster; ++i)
          if (kOutputs[sum][i]) total += kOutputs[sum][i] * y[i];
        store(total, sums + (sum * rows * across + g) * kColumns + v);
      }
    }
  }
}

// The sums of a channel's products with a matrix, in a tile of `packed`, (kColumns); the bias has a matrix of its own.
template <class A>
A* sums_of(const MaskedConvProblem& p, A* tile, int64_t matrix, int64_t channel) {
  return tile + (matrix * p.in_channels + channel) * Types<A>::kColumns;
}

// Makes the sums of some parts zeros.
template <class A>
void clear_sums(const MaskedConvProblem& p, Span parts, A* packed) {
  constexpr int64_t kBytes = sizeof(A) * Types<A>::kColumns;
  for_weights(p, parts, [&](int64_t j, Span in) {
    A* tile = packed + j * tile_size<A>(p);
    for (int64_t n = 0; n < p.num_matrices; ++n) memset(sums_of(p, tile, n, in.begin), 0, (in.end - in.begin) * kBytes);
    if (in.begin == 0) memset(sums_of(p, tile, p.num_matrices, 0), 0, kBytes);
  });
}

// Adds some rows of kColumns to one.
template <class A>
void add_rows(const A* rows, int64_t count, A* to) {
  constexpr int kColumns = Types<A>::kColumns;
  for (int v = 0; v < kColumns; v += Types<A>::kLanes) {
    auto sum = load(to + v);
    for (int64_t i = 0; i < count; ++i) sum += load(rows + i * kColumns + v);
    store(sum, to + v);
  }
}

// What some blocks of positions add to some parts of the weight, in `packed`, which is laid out as the packed weight.
template <class A>
void weight_gradient(const MaskedConvProblem& p, Span span, Span parts, void* packed, void* scratch) {
  constexpr int kLanes = Types<A>::kLanes, kColumns = Types<A>::kColumns;
  auto* offsets = static_cast<Offset*>(scratch);
  auto* lines = offsets + round_up(4 * p.num_taps, 4);
  A* room = reinterpret_cast<A*>(lines + round_up(p.block_rows, 4));
  A* columns = room + patch_size<A>(p);
  clear_sums(p, parts, static_cast<A*>(packed));
  for (int64_t n = span.begin; n < span.end; ++n) {
    const PositionBlock block = locate(p, n);
    const Patch<A> patch = make_patch(p, block, room, offsets);
    const int64_t rows = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
    const int64_t steps = clusters(p, width), part = rows * steps * kColumns;
    for (int64_t y = 0; y < rows; ++y) lines[y] = {y * patch.row, y * steps * kColumns};
    int64_t ready = -1;
    for_weights(p, parts, [&](int64_t j, Span in) {
      A* tile = static_cast<A*>(packed) + j * tile_size<A>(p);
      A* of_sums = p.cluster > 1 ? columns + rows * width * kColumns : columns;  // the gradient of each sum
      if (j != ready) {
        copy_patch(p, p.result, block, j * kColumns, min(kColumns, p.out_channels - j * kColumns), columns,
                      kColumns);
        if constexpr (__is_same(A, float))
          if (p.cluster > 1) make_sum_gradients(p, rows, width, columns, of_sums);
      }
      ready = j;
      for (int64_t sum = 0; sum < kSums; ++sum)
        for (int64_t n = p.first_product[sum]; n < p.first_product[sum + 1]; ++n) {
          A* sums = sums_of(p, tile, p.products[n].matrix, in.begin);
          multiply<typename Types<A>::Arithmetic>(
              in.end - in.begin, {sums, kColumns, patch.at + offsets[n].row + in.begin, of_sums + sum * part, lines,
                                  rows, steps, 1, patch.step, sums, kColumns});
        }
      if (in.begin == 0) add_rows(columns, rows * width, sums_of(p, tile, p.num_matrices, 0));
    });
  }
}

// Writes the gradients of some parts of the weight, from the sums of all shares of the blocks, side by side in
// `packed`.
template <class A>
void write_gradient(const MaskedConvProblem& p, Span parts, int64_t shares, const void* packed) {
  constexpr int kColumns = Types<A>::kColumns;
  const auto add_shares = [&](int64_t j, int64_t row, A factor, A* to) {
    const A* from = static_cast<const A*>(packed) + j * tile_size<A>(p) + row * kColumns;
    for (int64_t share = 0; share < shares; ++share, from += tiles<A>(p) * tile_size<A>(p))
      for (int l = 0; l < kColumns; l += Types<A>::kLanes) store(load(to + l) + factor * load(from + l), to + l);
  };
  for_weights(p, parts, [&](int64_t j, Span in) {
    const int64_t first = j * kColumns, count = min(kColumns, p.out_channels - first);
    for (int64_t t = 0; t < p.num_taps; ++t) {
      struct { int64_t matrix; A factor; } terms[6];  // of the tap's run
      int64_t num_terms = 0;
      for (int64_t n = 0; n < p.num_matrices; ++n)
        for (int k = 0; k < 3; ++k)
          if (const A factor = p.matrices[n].factors[k]; factor != 0 && p.matrices[n].taps[k] == p.tap[t])
            terms[num_terms++] = {n, factor};
      for (int64_t i = in.begin; i < in.end; ++i) {
        A sums[kColumns] = {};
        for (const auto* term = terms; term < terms + num_terms; ++term)
          add_shares(j, term->matrix * p.in_channels + i, term->factor, sums);
        put(p, sums, count, p.weight, first * p.weight_out_stride + i * p.weight_in_stride + p.tap[t],
            p.weight_out_stride);
      }
    }
    A sums[kColumns] = {};
    if (in.begin == 0)
      add_shares(j, p.num_matrices * p.in_channels, 1, sums), put(p, sums, count, p.bias, first, 1);
  });
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
