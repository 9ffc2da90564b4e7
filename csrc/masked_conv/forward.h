// The convolution of blocks of positions, from their patch to the result.
#pragma once

#include "masked_conv/multiply.h"
#include "masked_conv/patch.h"
#include "masked_conv/prefetch.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The part of a block whose sums are computed at a time: some of its rows, and some clusters of each.
struct Band {
  PositionBlock block;
  int64_t rows, clusters, first_row, first_cluster;  // numbers, and where they begin in the block
};

// f(band, number of bands) for all bands of a block. In views the clusters of a row are followed by those of the next,
// so that several rows may be one band.
template <class F>
void for_bands(const MaskedConvProblem& p, const PositionBlock& block, F f) {
  const int64_t rows = block.rows.end - block.rows.begin, width = block.columns.end - block.columns.begin;
  const int64_t across = clusters(p, width), most = p.cluster > 1 ? kBandClusters : kBandPositions;
  const int64_t room = p.tiled ? kTiledBand : most;
  const int64_t tall = p.cluster > 1 ? max(1, room / across) : 1;
  const int64_t bands_down = ceil_div(rows, tall), bands_across = ceil_div(across, room);
  for (int64_t n = 0; n < bands_down * bands_across; ++n) {
    const Span y = part_of(rows, bands_down, n / bands_across);
    const Span g = part_of(across, bands_across, n % bands_across);
    const int64_t left = block.columns.begin + g.begin * p.cluster;
    f(Band{{block.sample,
            {block.rows.begin + y.begin, block.rows.begin + y.end},
            {left, min(block.columns.end, left + (g.end - g.begin) * p.cluster)}},
           y.end - y.begin, g.end - g.begin, y.begin, g.begin},
      bands_down * bands_across);
  }
}

// Writes the outputs of a band's clusters, from their sums. to_row(r) is where row r's go, `stride` apart.
template <class A, class ToRow>
void write_outputs(const MaskedConvProblem& p, const Band& band,
                   const A (&sums)[kSums][kMostClusters][Types<A>::kColumns], ToRow to_row, int64_t stride) {
  const int64_t positions = band.block.columns.end - band.block.columns.begin;
  for (int64_t g = 0; g < band.rows * band.clusters; ++g) {
    const int64_t column = g % band.clusters * kCluster;
    A* to = to_row(g / band.clusters) + column * stride;
    for (int v = 0; v < Types<A>::kColumns; v += Types<A>::kLanes) {
      typename Types<A>::V y[kCluster] = {};
#pragma GCC unroll 12
      for (int sum = 0; sum < kSums; ++sum) {
        if (sum >= kShared && p.first_product[sum] == p.first_product[sum + 1]) continue;
        const auto x = load(&sums[sum][g][v]);
#pragma GCC unroll 4
        for (int i = 0; i < kCluster; ++i)
          if (kOutputs[sum][i]) y[i] += A(kOutputs[sum][i]) * x;
      }
#pragma GCC unroll 4
      for (int i = 0; i < kCluster; ++i)
        if (column + i < positions) store(y[i], to + i * stride + v);
    }
  }
}

// Positions of a band's row, padded to whole registers, but not a power of two.
template <class A>
constexpr int64_t kTurned = round_up(max(kMostPositions, kCluster * kMostClusters), Types<A>::kLanes) +
                            (kHasTiles ? Types<A>::kLanes : 0);

// Transposes the sums (positions, kColumns) of one row of a block: into `turned`, or, unless `channel` is -1, into the
// result's channels from there on.
template <class A>
void turn(const MaskedConvProblem& p, const PositionBlock& row, int64_t channel, const A* sums,
          A (&turned)[Types<A>::kColumns][kTurned<A>]) {
  constexpr int kLanes = Types<A>::kLanes;
  const int64_t positions = row.columns.end - row.columns.begin;
  for (int64_t x = 0; x < positions; x += kLanes)
    for (int v = 0; v < Types<A>::kColumns; v += kLanes) {
      typename Types<A>::V m[kLanes];
      for (int l = 0; l < kLanes; ++l) m[l] = load(sums + (x + l) * Types<A>::kColumns + v);
      transpose(m);
      A* const result = static_cast<A*>(p.result.at) + place(p.result, row) + x + (channel + v) * p.result.channel;
      for (int l = 0; l < kLanes; ++l)
        if (channel < 0)
          store(m[l], &turned[v + l][x]);
        else
          store_part(m[l], result + l * p.result.channel, positions - x);
    }
}

// Computes blocks of positions, tile by tile, with the CPU's tiles if there are some. packed: all tiles of the weight;
// scratch: `scratch_bytes`. Returns false if a number is too large for tiles.
template <class A>
bool forward(const MaskedConvProblem& p, Span span, const void* packed, void* scratch, Tiles* by_tiles) {
  constexpr int kLanes = Types<A>::kLanes, kColumns = Types<A>::kColumns;
  A sums[kTurned<A>][kColumns] = {}, turned[kColumns][kTurned<A>], parts[kSums][kMostClusters][kColumns];
  auto* offsets = static_cast<Offset*>(scratch);
  A* room = reinterpret_cast<A*>(offsets + round_up(4 * p.num_taps, 4));
  const bool last = p.result.channel == 1;
  const int64_t sums_of_cluster = p.cluster > 1 ? kSums : 1;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const PositionBlock block = locate(p, n);
    const Patch<A> patch = make_patch(p, block, room, offsets);
    if (!patch.fits) return false;
    BlockPrefetch next(p.precision);
    if (n + 1 < span.end) next.add(p.x, locate(p, n + 1), {0, p.in_channels});
    for (int64_t j = 0; j < tiles<A>(p); ++j) {
      const A* tile = static_cast<const A*>(packed) + j * tile_size<A>(p);
      const A* bias = tile + p.num_matrices * words(p, p.in_channels) * kColumns;
      const bool plain = !is_narrow(p) && p.epilogue == Epilogue::none && (j + 1) * kColumns <= p.out_channels &&
                         !p.extra.at && !p.residual.at && !p.kept.at;
      const bool done = plain && last;
      for_bands(p, block, [&](const Band& band, int64_t bands) {
        const PositionBlock& here = band.block;
        const int64_t count = band.rows * band.clusters;
        if (j + 1 == tiles<A>(p)) next.next(bands);
        BlockPrefetch prefetch(p.precision);
        for (const Grid* g : {&p.extra, &p.residual, &p.kept, &p.result})
          for (int v = 0; v < kTileRegisters; ++v) prefetch.add(*g, here, channel_run<A>(p, j, v));
        // Whole sums are written to the result at once where nothing else follows.
        const auto to_row = [&](int64_t r) {
          return done ? static_cast<A*>(p.result.at) + place(p.result, here) + r * p.result.row + j * kColumns
                      : sums[r * band.clusters * p.cluster];
        };
        const int64_t to_stride = done ? p.result.column : kColumns;
        const int64_t runs = ceil_div(count, by_tiles ? kTiledRows : kMaxRows);
        int64_t calls = runs;
        for (int64_t sum = 1; sum < sums_of_cluster; ++sum)
          calls += sum < kShared || p.first_product[sum] < p.first_product[sum + 1];
        const A* rows = patch.at + band.first_row * patch.row + band.first_cluster * patch.step;
        for (int64_t sum = 0; sum < sums_of_cluster; ++sum) {
          if (sum >= kShared && p.first_product[sum] == p.first_product[sum + 1]) continue;
          for (int64_t r = 0; r < runs; ++r) {
            const Span run = part_of(count, runs, r);
            prefetch.next(calls);
            const SumOfProducts<A> products{
                sum < kShared ? bias : bias + kColumns, 0, rows + run.begin * patch.step, tile,
                offsets + p.first_product[sum], p.first_product[sum + 1] - p.first_product[sum],
                by_tiles ? ceil_div(p.in_channels, kBlockChannels) : p.in_channels, patch.step,
                by_tiles ? kBlockWords : 1,
                p.cluster > 1 ? parts[sum][run.begin] : to_row(0) + run.begin * to_stride,
                p.cluster > 1 ? kColumns : to_stride, kLanes};
            if constexpr (kHasTiles && __is_same(A, float))
              if (by_tiles) {
                multiply_tiled(*by_tiles, run.end - run.begin, products);
                continue;
              }
            multiply<typename Types<A>::Arithmetic>(run.end - run.begin, products);
          }
        }
        if constexpr (__is_same(A, float))
          if (p.cluster > 1) write_outputs(p, band, parts, to_row, to_stride);
        if (done) return;
        for (int64_t r = 0; r < band.rows; ++r) {
          const PositionBlock row{here.sample, {here.rows.begin + r, here.rows.begin + r + 1}, here.columns};
          const A* from = to_row(r);
          if (!last) turn(p, row, plain ? j * kColumns : -1, from, turned);
          if (plain) continue;
          const A* at = last ? from : turned[0];
          const int64_t pitch = last ? kColumns : kTurned<A>, second = last ? kLanes : kLanes * kTurned<A>;
          for (int v = 0; v < (p.epilogue == Epilogue::gate ? 1 : kTileRegisters); ++v) {
            const ChannelRun to = channel_run<A>(p, j, v);
            if (to.count) activate(p, row, to.channel, to.count, at + v * second, pitch, second);
          }
        }
      });
    }
  }
  return true;
}

}  // namespace
}  // namespace vqfast::VQFAST_ISA
