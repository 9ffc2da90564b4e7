"""Minima over groups of four codes, and the nearest of one group or two: helpers of ``triton_kernels.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import bits_of

GROUP = tl.constexpr(4)  # codes
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
    """Of each row of ``(BM, BN // 4)`` packed scores the three best, and the first codes of the best two.

    ``begin`` is the first code of the tiles. Of a slot, whose two best scores are given, the third one isn't
    known: it counts as equal to the second if both are among the row's best.
    """
    slot = tl.arange(0, BN // 4)
    first = tl.min(best, axis=1)
    chosen = tl.min(tl.where(best == first[:, None], slot[None, :], BN), axis=1)
    others = tl.where(slot[None, :] == chosen[:, None], second, best)
    following = tl.min(others, axis=1)
    beside = tl.min(tl.where(others == following[:, None], slot[None, :], BN), axis=1)
    third = tl.min(tl.where(slot[None, :] == beside[:, None], second, others), axis=1)
    start = begin + _code_of(first, chosen, BN)
    return first, start, following, begin + _code_of(following, beside, BN), third


@triton.jit
def _code_of(score, slot, BN: tl.constexpr):
    """The first code of the group with that packed score in a slot."""
    return (bits_of(score) & (TILES - 1)) * BN + slot // 4 * 16 + slot % 4 * 2


@triton.jit
def nearest_of_groups(
    x, at, sd, codebook, ek, ed, code, beside, valid, both, K, D, ACC: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """The nearest of the group that begins with ``code``, and whether that is certain; see the bound, 6.

    Where ``both``, the group that begins with ``beside`` counts too.
    """
    best = tl.full(code.shape, float("inf"), ACC)
    second = tl.full(code.shape, float("inf"), ACC)
    index = code
    member = tl.arange(0, GROUP)
    for turn in range(2):
        valid = valid & (both | (turn == 0))
        k = tl.where(turn == 0, code, beside)[:, None] + (member // 2 * 8 + member % 2)[None, :]
        there = valid[:, None] & (k < K)
        at_code = k.to(tl.int64) * ek
        distance = tl.zeros(k.shape, ACC)
        for d0 in range(0, D, BD):
            d = (d0 + tl.arange(0, BD)).to(tl.int64)[None, None, :]
            inside = there[:, :, None] & (d < D)
            e = tl.load(codebook + at_code[:, :, None] + d * ed, mask=inside, other=0)
            at_vector = at[:, None, None] + tl.zeros([1, GROUP, 1], tl.int64) + d * sd
            difference = tl.load(x + at_vector, mask=inside, other=0).to(ACC) - e.to(ACC)
            distance += tl.sum(difference * difference, axis=2)
        # of a code vector with a NaN, and of none
        distance = tl.where(there & (distance == distance), distance, float("inf"))
        closest = tl.min(distance, axis=1)
        chosen = tl.min(tl.where(distance == closest[:, None], k, 2147483647), axis=1)
        rest = tl.min(tl.where(k == chosen[:, None], float("inf"), distance), axis=1)
        second = tl.minimum(tl.minimum(second, rest), tl.maximum(best, closest))
        index = tl.where(closest < best, chosen, index)
        best = tl.minimum(best, closest)
    limit = best.to(tl.float64) * (1 + (4.0 * D + 32.0) * 2.0**-24) + D * 2.0**-125
    return index, (second.to(tl.float64) > limit) & (best < 2.0**120)
