// The gradient of the weight by the CPU's tiles: rows are channels of x, and pairs those of neighbouring positions, or
// clusters, one row of the grid after the other.
//
// Where the views are x itself, the gradients of the outputs have as many columns as x's patch, with zeros where that
// reaches beyond theirs, so that a tap is an offset again.
#pragma once

#include "masked_conv/weight_gradient.h"

namespace vqfast::VQFAST_ISA {
namespace {

#if defined(__AMX_TILE__)

// The pieces of all channels of all views of the largest block, (views, channels, kPieces, length): the size and the
// distances in numbers of bfloat16.
struct PieceRows {
  int64_t longest = 0, length, channel, view, views = 0;
  explicit PieceRows(const MaskedConvProblem& p) {
    const int64_t across = views_across(p, {0, {0, p.block_rows}, {0, p.block_columns}});
    for (int64_t l = 0; l < p.num_view_sets; ++l) {
      views += kRunKinds[p.view_sets[l].kind].views;
      longest = max(longest, round_up(rows_of_views(p.view_sets[l], p.block_rows) * across, kBlockChannels));
    }
    length = longest + kBlockChannels;  // zeros
    // An odd number of lines, so that channels lie apart in L1.
    channel = (3 * length / kBlockChannels | 1) * kBlockChannels;
    view = round_up(p.in_channels, kLanes) * channel;
  }
};

// Products of a block: its positions, or clusters, in blocks of kBlockChannels.
int64_t position_blocks(int64_t positions) { return ceil_div(positions, kBlockChannels); }
constexpr int64_t kColumnBlock = kBlockWords * kTileColumns;  // words of the columns' pieces

// Scratch of a thread in float32 numbers: x and its views, their pieces, the outputs' gradients and their pieces.
struct TiledScratch {
  int64_t raw, views, rows, outputs, columns;
  explicit TiledScratch(const MaskedConvProblem& p) {
    const PositionBlock block{0, {0, p.block_rows}, {0, p.block_columns}}, all = seen(p, block);
    const PieceRows pieces(p);
    const int64_t width = all.columns.end - all.columns.begin;
    raw = (all.rows.end - all.rows.begin) * width * kLanes;
    views = 8 * pieces.longest * kLanes;
    rows = pieces.views * pieces.view / 2;
    outputs = round_up(p.block_rows * width, kBlockChannels) * kTileColumns;
    columns = (p.cluster > 1 ? kSums : 1) * position_blocks(p.block_rows * views_across(p, block)) * kColumnBlock;
  }
  int64_t size() const { return raw + views + rows + outputs + columns; }
};

// Turns `positions` registers of channels, a multiple of kBlockChannels, to pieces of positions, and adds as many zeros
// as products may read beyond.
[[gnu::noinline]] void turn_to_pieces(const float* from, int64_t positions, const PieceRows& rows, Bf16* to) {
  const auto at = [&](int channel, int64_t position) {
    return reinterpret_cast<float*>(to + channel * rows.channel + position);
  };
  for (int64_t m = 0; m < positions; m += kBlockChannels) {
    Floats even[kLanes], odd[kLanes];
    for (int l = 0; l < kLanes; ++l) even[l] = load(from + (m + 2 * l) * kLanes);
    transpose(even);
    for (int l = 0; l < kLanes; ++l) odd[l] = load(from + (m + 2 * l + 1) * kLanes);
    transpose(odd);
    for (int c = 0; c < kLanes; ++c) store_pieces(even[c], odd[c], at(c, m), rows.length / 2);
  }
  for (int c = 0; c < kLanes; ++c) store_pieces(Floats{}, Floats{}, at(c, positions), rows.length / 2);
}

// Makes the pieces of all views of a block. Returns false if a number is too large for tiles.
bool make_rows(const MaskedConvProblem& p, const PositionBlock& block, const PieceRows& rows, float* raw, float* views,
               Bf16* to) {
  const PositionBlock all = seen(p, block);
  const int64_t width = all.columns.end - all.columns.begin, across = views_across(p, block);
  for (int64_t c = 0; c < p.in_channels; c += kLanes) {
    copy_patch(p, p.x, all, c, min(kLanes, p.in_channels - c), raw, kLanes);
    if (!fit(raw, (all.rows.end - all.rows.begin) * width * kLanes)) return false;
    Bf16* at = to + c * rows.channel;
    for (const ViewSet* set = p.view_sets; set < p.view_sets + p.num_view_sets; ++set) {
      const int64_t count = rows_of_views(*set, block.rows.end - block.rows.begin);
      const int64_t first = block.rows.begin + set->top - all.rows.begin, filled = count * across;
      const int64_t left = block.columns.begin + set->dx - all.columns.begin, padded = round_up(filled, kBlockChannels);
      const Raw corner{raw + (first * width + left) * kLanes, width * kLanes, kLanes, count, across};
      make_views<false>(set->kind, corner, views, padded * kLanes, kLanes);
      for (int64_t v = 0; v < kRunKinds[set->kind].views; ++v, at += rows.view) {
        float* view = views + v * padded * kLanes;
        memset(view + filled * kLanes, 0, sizeof(float) * (padded - filled) * kLanes);
        turn_to_pieces(view, padded, rows, at);
      }
    }
  }
  return true;
}

// Makes the pieces of the gradients of all sums, (kSums, blocks of positions), or of the outputs if they are the sums.
void make_columns(const MaskedConvProblem& p, int64_t positions, int64_t across, int64_t width, const float* outputs,
                  float* to) {
  const int64_t blocks = position_blocks(positions);
  constexpr int64_t kPiece = kTileSteps * kTileColumns;
  for (int64_t g = 0; g < blocks * kBlockChannels;
       g += 2, to += g % kBlockChannels ? kTileColumns : kTileColumns + 2 * kPiece)
    for (int v = 0; v < kTileColumns; v += kLanes) {
      if (p.cluster == 1) {
        const float* first = outputs + g * kTileColumns + v;
        store_pieces(load(first), load(first + kTileColumns), to + v, kPiece);
        continue;
      }
      Floats y[2][kCluster] = {};
      for (int h = 0; h < 2 && g + h < positions; ++h) {
        const int64_t column = (g + h) % across * kCluster;
        const float* first = outputs + ((g + h) / across * width + column) * kTileColumns + v;
        for (int i = 0; i < min(kCluster, width - column); ++i) y[h][i] = load(first + i * kTileColumns);
      }
#pragma GCC unroll 12
      for (int sum = 0; sum < kSums; ++sum) {
        if (p.first_product[sum] == p.first_product[sum + 1]) continue;
        Floats total[2] = {};
#pragma GCC unroll 4
        for (int i = 0; i < kCluster; ++i)
          if (kOutputs[sum][i]) total[0] += kOutputs[sum][i] * y[0][i], total[1] += kOutputs[sum][i] * y[1][i];
        store_pieces(total[0], total[1], to + sum * blocks * kColumnBlock + v, kPiece);
      }
    }
}

// As weight_gradient. Returns false if a number is too large for tiles.
bool weight_gradient_by_tiles(const MaskedConvProblem& p, Span span, Span parts, float* packed, float* raw) {
  const PieceRows pieces(p);
  const TiledScratch scratch(p);
  float* const views = raw + scratch.raw;
  Bf16* const rows = reinterpret_cast<Bf16*>(views + scratch.views);
  float* const outputs = views + scratch.views + scratch.rows;
  float* const columns = outputs + scratch.outputs;
  const int64_t runs = channel_runs(p);
  const Offset none{};
  Tiles tiles;
  clear_sums(p, parts, packed);
  for (int64_t n = span.begin; n < span.end; ++n) {
    PositionBlock block = locate(p, n);
    if (!make_rows(p, block, pieces, raw, views, rows)) return false;
    const int64_t height = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
    const int64_t across = views_across(p, block), wide = p.cluster > 1 ? width : across;
    const int64_t positions = height * across - (wide - width), blocks = position_blocks(positions);
    block.columns.end = block.columns.begin + wide;
    for (int64_t part = parts.begin, end; part < parts.end; part = end) {  // of one tile at a time
      const int64_t j = part / runs, first = j * kTileColumns;
      end = min(parts.end, (j + 1) * runs);
      copy_patch(p, p.result, block, first, min(kTileColumns, p.out_channels - first), outputs, kTileColumns);
      for (int64_t y = 0; wide > width && y < height; ++y)
        memset(outputs + (y * wide + width) * kTileColumns, 0, sizeof(float) * (wide - width) * kTileColumns);
      memset(outputs + height * wide * kTileColumns, 0,
             sizeof(float) * (round_up(height * wide, kBlockChannels) - height * wide) * kTileColumns);
      if (!fit(outputs, height * wide * kTileColumns)) return false;
      make_columns(p, positions, across, width, outputs, columns);
      float* tile = packed + j * tile_size<float>(p);
      for (int64_t sum = 0; sum < kSums; ++sum)
        for (int64_t n = p.first_product[sum]; n < p.first_product[sum + 1]; ++n) {
          const ConvProduct& product = p.products[n];
          const ViewSet& set = p.view_sets[product.view_set];
          int64_t view = product.view;
          for (int64_t l = 0; l < product.view_set; ++l) view += kRunKinds[p.view_sets[l].kind].views;
          const Bf16* from = rows + view * pieces.view + (product.dy - set.top) * across +
                             (p.cluster > 1 ? 0 : product.dx - set.dx);
          for_weights(p, {part, end}, [&](int64_t, Span in) {
            float* sums = sums_of(p, tile, product.matrix, in.begin);
            multiply_tiled(tiles, in.end - in.begin,
                           {sums, kTileColumns, reinterpret_cast<const float*>(from + in.begin * pieces.channel),
                            columns + sum * blocks * kColumnBlock, &none, 1, blocks, pieces.channel / 2, kTileSteps,
                            sums, kTileColumns, pieces.length / 2});
          });
        }
      if (part % runs == 0) add_rows(outputs, height * wide, sums_of(p, tile, p.num_matrices, 0));
    }
  }
  return true;
}
#endif

}  // namespace
}  // namespace vqfast::VQFAST_ISA
