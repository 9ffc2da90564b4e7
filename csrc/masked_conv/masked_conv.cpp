// Masked convolution: the tile with positions as its rows and output channels as its columns, over the visible taps.
//
// A block of positions has its part of x copied once, channels last and zero outside the grid: its patch. A tap is an
// offset into that, and no product is with a zero of the mask. Where neighbours are computed together, linear
// combinations of x's columns take the place of the patch (winograd.h). The packed weight of one tile of channels
// streams from L2 past the whole block: 2 loads of columns, and for each row a broadcast and two multiply-adds, which
// is the peak on Zen 5. Sums stay in L1 and are activated in a pass of their own, so that the layout, the precision and
// the activation concern nothing else; sums that need none of that go to the result at once.
//
// Where the CPU has tiles, these multiply float32 in pieces, which patch and packed weight hold then (tiled.h): six
// products for one, at sixteen times the rate.
//
// The gradient of x is the same convolution with the taps turned round.

#include "masked_conv/embed.h"
#include "masked_conv/forward.h"
#include "masked_conv/weight_tiles.h"

namespace vqfast::VQFAST_ISA {
namespace {

// The gate alone, without a convolution.
template <class T>
void gate(const MaskedConvProblem& p, Span span) {
  const bool last = p.result.channel == 1;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const PositionBlock block = locate(p, n);
    for (int64_t y = block.rows.begin; y < block.rows.end; ++y) {
      const PositionBlock row{block.sample, {y, y + 1}, block.columns};
      const Lines<const T> x(p.x, last, row, 0);
      const auto call = p.epilogue == Epilogue::gate ? activate<T, Epilogue::gate, T>
                                                     : activate<T, Epilogue::gate_gradient, T>;
      call(p, row, 0, p.out_channels / 2, x.at, x.line, p.out_channels / 2 * p.x.channel);
    }
  }
}

// Bytes of a thread's scratch: offsets of products, of rows, a patch, and the gradients of a block's outputs and sums.
template <class A>
int64_t scratch_bytes(const MaskedConvProblem& p) {
#if defined(__AMX_TILE__)
  if (p.tiled && p.of_weight) return int64_t(sizeof(float)) * TiledScratch(p).size();
#endif
  const int64_t of_sums = p.cluster > 1 ? kSums * p.block_rows * clusters(p, p.block_columns) : 0;
  const int64_t numbers = patch_size<A>(p) + (p.block_rows * p.block_columns + of_sums) * Types<A>::kColumns;
  const int64_t offsets = round_up(4 * p.num_taps, 4) + round_up(p.block_rows, 4);
  return int64_t(sizeof(Offset)) * offsets + int64_t(sizeof(A)) * numbers;
}

}  // namespace

// A call for the type T of the problem's numbers, and one for the type A of those that it is computed with.
#define VQFAST_BY_TYPE(call) with_precision(p.precision, [&](auto number) { using T = decltype(number); return call; })
#define VQFAST_BY_ACCUMULATED(call) \
  with_accumulated(p.precision, [&](auto number) { using A = decltype(number); return call; })

extern const MaskedConvKernel masked_conv_kernel;
const MaskedConvKernel masked_conv_kernel{
    plan,
    [](const MaskedConvProblem& p) { return VQFAST_BY_ACCUMULATED(tiles<A>(p)); },
    blocks,
    [](const MaskedConvProblem& p) {
      return VQFAST_BY_ACCUMULATED(tiles<A>(p) * tile_size<A>(p) * int64_t(sizeof(A)));
    },
    [](const MaskedConvProblem& p) { return VQFAST_BY_ACCUMULATED(scratch_bytes<A>(p)); },
    [](const MaskedConvProblem& p, Span tiles, void* packed) { return VQFAST_BY_TYPE(pack<T>(p, tiles, packed)); },
    [](const MaskedConvProblem& p, Span blocks, const void* packed, void* scratch) {
      if (p.codes) return VQFAST_BY_TYPE(embed<T>(p, blocks, packed)), true;
#if defined(__AMX_TILE__)
      if (p.tiled) {
        Tiles tiles;
        return forward<float>(p, blocks, packed, scratch, &tiles);
      }
#endif
      return VQFAST_BY_ACCUMULATED(forward<A>(p, blocks, packed, scratch, nullptr));
    },
    [](const MaskedConvProblem& p) { return VQFAST_BY_ACCUMULATED(tiles<A>(p) * channel_runs(p)); },
    [](const MaskedConvProblem& p, Span blocks, Span parts, void* packed, void* scratch) {
      if (p.codes) return VQFAST_BY_TYPE(embed_gradient<T>(p, blocks, parts, packed)), true;
#if defined(__AMX_TILE__)
      if (p.tiled)
        return weight_gradient_by_tiles(p, blocks, parts, static_cast<float*>(packed), static_cast<float*>(scratch));
#endif
      return VQFAST_BY_ACCUMULATED(weight_gradient<A>(p, blocks, parts, packed, scratch)), true;
    },
    [](const MaskedConvProblem& p, Span parts, int64_t shares, const void* packed) {
      VQFAST_BY_ACCUMULATED(write_gradient<A>(p, parts, shares, packed));
    },
    [](const MaskedConvProblem& p, Span blocks) { VQFAST_BY_TYPE(gate<T>(p, blocks)); },
};

}  // namespace vqfast::VQFAST_ISA
