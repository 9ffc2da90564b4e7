"""Minima over groups of four codes, and the nearest of the four: helpers of ``triton_kernels.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import bits_of

GROUP = 4  # codes
TILES = tl.constexpr(64)  # tiles whose numbers fit the bits that ``packed`` overwrites


@triton.jit
def group_minima(score, BM: tl.constexpr, BN: tl.constexpr):
    """``(BM, BN // 4)``: the smallest score of each group, the codes c, c + 1, c + 8 and c + 9.

    A thread has these four of a row in tensor cores' results, so that no thread asks another.
    """
    four = tl.permute(tl.reshape(score, [BM, BN // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
    left, right = tl.split(four)
    left, right = tl.split(tl.minimum(left, right))
    return tl.reshape(tl.minimum(left, right), [BM, BN // 4])


@triton.jit
def packed(score, tile):
    """The score with the number of its tile in its lowest bits; see the bound, point 5."""
    return ((bits_of(score) & -TILES) | tile).to(tl.float32, bitcast=True)


@triton.jit
def of_rows(best, second, begin, BN: tl.constexpr):
    """Of each row of ``(BM, BN // 4)`` packed scores the best, the second best, and the best's first code.

    ``begin`` is the first code of the tiles.
    """
    slot = tl.arange(0, BN // 4)
    first = tl.min(best, axis=1)
    chosen = tl.min(tl.where(best == first[:, None], slot[None, :], BN), axis=1)
    others = tl.min(tl.where(slot[None, :] == chosen[:, None], second, best), axis=1)
    tile = bits_of(first) & (TILES - 1)
    return first, others, begin + tile * BN + chosen // 4 * 16 + chosen % 4 * 2


@triton.jit
def nearest_of_group(
    x, at, sd, codebook, ek, ed, code, valid, K, D, ACC: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """The nearest of the group that begins with ``code``, and whether that is certain; see the bound, 6."""
    best = tl.full(code.shape, float("inf"), ACC)
    second = tl.full(code.shape, float("inf"), ACC)
    index = code
    for member in tl.static_range(4):
        k = code + member // 2 * 8 + member % 2
        there = valid & (k < K)
        distance = tl.zeros(code.shape, ACC)
        for d0 in range(0, D, BD):
            d = (d0 + tl.arange(0, BD)).to(tl.int64)
            inside = there[:, None] & (d < D)[None, :]
            e = tl.load(codebook + (k.to(tl.int64) * ek)[:, None] + (d * ed)[None, :], mask=inside, other=0)
            vector = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0)
            difference = vector.to(ACC) - e.to(ACC)
            distance += tl.sum(difference * difference, axis=1)
        # of a code vector with a NaN, and of none
        distance = tl.where(there & (distance == distance), distance, float("inf"))
        index = tl.where(distance < best, k, index)
        second = tl.minimum(second, tl.maximum(best, distance))
        best = tl.minimum(best, distance)
    limit = best.to(tl.float64) * (1 + (4.0 * D + 32.0) * 2.0**-24) + D * 2.0**-125
    return index, (second.to(tl.float64) > limit) & (best < 2.0**120)
