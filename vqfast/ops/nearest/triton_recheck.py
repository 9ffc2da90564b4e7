"""The second look at vectors whose code is uncertain: helpers of ``triton_kernels.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import MEASURE, centred_block, error_bound, measure, split_halves


@triton.jit
def exact_nearest(
    x, at, sd, n, valid, pivot, hi, lo, half, ceiling, codebook, ek, ed,
    code_exponent, e, e1, e2, D, Dp, K, Kp,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The nearest codes of BM vectors: float64 distances to every code that may be nearest."""
    d = tl.arange(0, BD).to(tl.int64)
    column = tl.arange(0, BN)
    codes = column[None, :] * Dp + tl.arange(0, BD)[:, None]  # (BD, BN): the codes' block, transposed
    scale, t, _all_finite, x2, r1, r2 = measure(
        x, at, valid, sd, pivot, D, code_exponent, WIDE, BD if BD < MEASURE else MEASURE
    )
    err = error_bound(t, x2, r1, r2, e, e1, e2, 6 * BD + tl.cdiv(D, BD) + 16, 3)
    limit = tl.load(ceiling + n, mask=valid, other=0) + err
    nearest = tl.full([BM], float("inf"), tl.float64)
    index = tl.zeros([BM], tl.int32)
    for j in range(0, Kp, BN):
        score = t[:, None] * tl.load(half + j + column)[None, :]
        for d0 in range(0, D, BD):
            centred, _good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
            x_hi, x_lo, _x2, _r1, _r2 = split_halves(centred, scale)
            e_hi = tl.load(hi + codes + d0)
            product = tl.dot(x_lo, e_hi)
            product = tl.dot(x_hi, tl.load(lo + codes + d0), product)
            score -= tl.dot(x_hi, e_hi, product)
        hi += BN * Dp
        lo += BN * Dp
        limit = tl.minimum(limit, tl.min(score, axis=1) + 2 * err)
        running = (valid[:, None] & (j + column < K)[None, :] & ~(score > limit[:, None])).to(tl.int32)
        while tl.max(tl.max(running, axis=1), axis=0) > 0:
            # the float64 distance, by differences, of the next code of each vector
            next_column = tl.min(tl.where(running > 0, column[None, :], BN), axis=1)
            has = next_column < BN
            k = tl.where(has, j + next_column, 0)
            distance = tl.zeros([BM], tl.float64)
            for d0 in range(0, D, BD):
                inside = has[:, None] & (d0 + d < D)[None, :]
                vector = tl.load(x + at[:, None] + ((d0 + d) * sd)[None, :], mask=inside, other=0)
                at_code = (k.to(tl.int64) * ek)[:, None] + ((d0 + d) * ed)[None, :]
                code = tl.load(codebook + at_code, mask=inside, other=0)
                difference = vector.to(tl.float64) - code.to(tl.float64)
                distance += tl.sum(difference * difference, axis=1)
            # of a code vector with a NaN
            distance = tl.where(distance == distance, distance, float("inf"))
            index = tl.where(has & (distance < nearest), k, index)
            nearest = tl.where(has, tl.minimum(nearest, distance), nearest)
            running = tl.where(column[None, :] == next_column[:, None], 0, running)
    return index
