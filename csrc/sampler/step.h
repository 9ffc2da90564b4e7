// One step of a program at some positions: its sums start from bias, codes and early taps, run through the matrices of
// its taps, and leave the registers activated.
#pragma once

#include "sampler/memory.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Step i at columns x .. of row y: over the taps that are early, when the row starts, or over the others. The rows of
// the product are samples side by side, and then columns of the grid: number column * batch + sample. Of several columns
// all sources have the step's stride.
template <class Memory>
struct StepJob {
  using T = typename Memory::T;
  using V = typename Memory::V;
  using Weight = typename Memory::Weight;
  using Segment = typename Memory::Segment;
  static constexpr int kLanes = Memory::kLanes, kColumns = Memory::kColumns;
  using Tile = T[kTileRows][kColumns];

  const typename Memory::Team& team;
  int64_t i, y, x;
  bool early;
  Segment* segments;  // room for one of each tap
  int64_t num_segments = 0;
  const Step& step() const { return team.all.s.steps[i]; }
  const StepMemory& memory() const { return team.all.steps[i]; }

  // What a tap reads for row 0 of the product, to be multiplied.
  Segment read(const Term& term, const Tap& tap, int64_t matrix) const {
    using Element = typename Memory::Sum::Element;
    constexpr int64_t kPacking = Memory::kPacking;
    const MemoryLayout& l = *team.all.layout;
    const int64_t depth = Memory::depth_of(term.channels);
    if (term.source == kCondition) {
      const int64_t stride = l.condition_room / kPacking;
      return {team.template at<Element>(l.condition) + team.all.s.early_column(x) * team.batch * stride, stride, depth,
              matrix};
    }
    const int64_t stride = team.all.steps[term.source].stride / kPacking;
    if constexpr (Memory::kRounds) {
      const auto* pairs = team.factors(term.source, y + tap.dy, x, tap.dx);
      return {reinterpret_cast<const Element*>(pairs), stride, depth, matrix};
    } else {
      return {team.value(term.source, y + tap.dy, x, tap.dx), stride, depth, matrix};
    }
  }

  // Whether a tap finds a value, not a zero between those of a source with another stride.
  bool finds(const Term& term, const Tap& tap) const {
    const int64_t stride = team.all.s.stride_of(term.source);
    return stride == 1 || ((y + tap.dy) % stride == 0 && (x + tap.dx) % stride == 0);
  }

  void find_segments() {
    int64_t matrix = 0;
    team.all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t) {
      if (tap.early != early || is_codes(term.source) || term.weight < 0) return;
      if (finds(term, tap)) segments[num_segments++] = read(term, tap, matrix);
      matrix += Memory::depth_of(term.channels);
    });
  }

  // The first row of the product in partial sums of a block.
  int64_t row_in_block() const { return team.all.s.early_column(x) / step().stride * team.batch; }

  // Sets `count` rows from row m on of tile j to all that is added without a product.
  [[gnu::noinline]] void start(int64_t j, int64_t m, int64_t count, Tile& sums) const {
    const Memory& all = team.all;
    const StepMemory& own = memory();
    const bool partial = !early && own.partial >= 0;
    const T* first = team.template at<T>(partial ? own.partial : own.start) + j * kColumns;
    int64_t from = partial ? row_in_block() + m : m % team.batch;
    for (int64_t r = 0; r < count; ++r) {
      memcpy(sums[r], first + from * own.columns, sizeof sums[r]);
      if (++from == team.batch && !partial) from = 0;
    }
    const auto add = [&](const T* more, int64_t r, int64_t v) {
      store(load(sums[r] + v * kLanes) + load(more), sums[r] + v * kLanes);
    };
    const T* table = all.template shared<T>(own.tables) + j * kColumns;
    const bool paired = is_paired(step().activation);
    all.for_taps(step(), [&](const Term& term, const Tap& tap, int64_t) {
      if (is_codes(term.source) && tap.early == early) {
        const int32_t* codes = team.codes(term.source, y + tap.dy, x, tap.dx) + m;
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kTileRegisters; ++v) add(table + codes[r] * own.columns + v * kLanes, r, v);
      } else if (term.weight < 0 && tap.early == early) {
        const int64_t stride = all.steps[term.source].stride;
        const T* at = team.value(term.source, y + tap.dy, x, tap.dx) + m * stride + j * (paired ? kLanes : kColumns);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t v = 0; v < kTileRegisters; ++v)
            add(at + r * stride + v * (paired ? own.channels : kLanes), r, v);
      }
      if (is_codes(term.source)) table += (all.s.num_embeddings + 1) * own.columns;
    });
  }

  // Adds the products to kR rows from row m on of tile j. A function of its own, so that all registers are free for it.
  template <int kR>
  [[gnu::noinline]] void multiply(int64_t j, int64_t m, Tile& tile) const {
    const StepMemory& own = memory();
    const Weight* matrix = team.all.template shared<Weight>(own.matrix[early]);
    matrix += j * own.depth[early] * kColumns;
    Sums<typename Memory::Sum, kR> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kTileRegisters; ++v) sums.of[r][v] = load(tile[r] + v * kLanes);
    for (const Segment* segment = segments; segment < segments + num_segments; ++segment) {
      const Weight* own_rows = matrix + segment->matrix * kColumns;
      sums.add(segment->depth, segment->rows + m * segment->stride, segment->stride, 1, own_rows);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r)
      for (int v = 0; v < kTileRegisters; ++v) store(sums.of[r][v], tile[r] + v * kLanes);
  }
  template <int kR = kTileRows>
  void multiply(int64_t rows, int64_t j, int64_t m, Tile& tile) const {
    if (rows == kR) return multiply<kR>(j, m, tile);
    if constexpr (kR > 1) multiply<kR - 1>(rows, j, m, tile);
  }

  // Activates the sums and writes the values; sums over early taps that late ones follow are kept as they are.
  [[gnu::noinline]] void finish(int64_t j, int64_t m, int64_t count, const Tile& sums) const {
    const StepMemory& own = memory();
    if (early && own.partial >= 0) {
      T* to = team.template at<T>(own.partial) + (row_in_block() + m) * own.columns + j * kColumns;
      for (int64_t r = 0; r < count; ++r) memcpy(to + r * own.columns, sums[r], sizeof sums[r]);
      return;
    }
    const Activation activation = step().activation;
    const int64_t from = step().residual;
    const bool paired = is_paired(activation);
    const int64_t channel = j * (paired ? kLanes : kColumns);
    const int64_t stride = from < 0 ? 0 : team.all.steps[from].stride;
    T* to = own.value < 0 ? nullptr : team.value(i, y, x) + m * own.stride + channel;
    const T* residual = from < 0 ? nullptr : team.value(from, y, x) + m * stride + channel;
    auto* factors = own.factors < 0 ? nullptr : team.factors(i, y, x) + m * own.stride + channel;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t v = 0; v < (paired ? 1 : kTileRegisters); ++v) {
        V out = load(sums[r] + v * kLanes);
        out = paired ? activated(activation, out, load(sums[r] + kLanes)) : activated(activation, out);
        if (residual) out += load(residual + r * stride + v * kLanes);
        if (!Memory::kRounds || to) store(out, to + r * own.stride + v * kLanes);
        if constexpr (Memory::kRounds)
          if (factors) Memory::Sum::write(out, factors + r * own.stride + v * kLanes);
      }
  }
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
