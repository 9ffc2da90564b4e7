// Prefetches, so that a block's memory arrives while products are computed.
#pragma once

#include "masked_conv/epilogue.h"
#include "masked_conv/pack.h"

namespace vqfast::VQFAST_ISA {
namespace {

// Prefetches the lines of some grids at a block of positions, for writing, in equal parts.
class BlockPrefetch {
 public:
  explicit BlockPrefetch(Precision precision)
      : size_(with_precision(precision, [](auto number) { return int64_t(sizeof number); })) {}
  // Adds the channels `of` of a grid at a block; nothing where there is no grid.
  void add(const Grid& g, const PositionBlock& b, const ChannelRun& of) {
    if (!g.at || !g.column || !of.count) return;
    const int64_t columns = b.columns.end - b.columns.begin;
    const bool last = g.channel == 1;
    across_ = last ? columns : max(across_, of.count), lines_ = across_ * (b.rows.end - b.rows.begin);
    grids_[count_++] = {static_cast<const char*>(g.at) + (place(g, b) + of.channel * g.channel) * size_,
                        g.row * size_, (last ? g.column : g.channel) * size_,
                        (last ? of.count : columns) * size_};
  }
  // Prefetches the next of `parts` parts.
  void next(int64_t parts) {
    if (!count_) return;
    for (const int64_t until = lines_ * ++part_ / parts; line_ < until; ++line_) {
      for (const Line* line = grids_; line < grids_ + count_; ++line)
        for (int64_t i = 0; i < line->bytes; i += 64)
          __builtin_prefetch(line->at + y_ * line->row + x_ * line->column + i, 1);
      if (++x_ == across_) x_ = 0, ++y_;
    }
  }

 private:
  struct Line {
    const char* at;
    int64_t row, column, bytes;
  } grids_[4 * kTileRegisters];
  int64_t size_;  // of a number
  int64_t count_ = 0, across_ = 0, lines_ = 0, line_ = 0, part_ = 0, y_ = 0, x_ = 0;
};

}  // namespace
}  // namespace vqfast::VQFAST_ISA
