"""The second look at vectors whose code is uncertain: helpers of ``triton_kernels.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import centred_block, split_halves, vector_offsets


@triton.jit
def exact_nearest(
    x, at, sd, n, valid, pivot, hi, lo, half, seen, N, codebook, ek, ed, D, Dp, K, Kp,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The nearest codes of BM vectors: float64 distances to every code that may be nearest.

    ``seen`` (4, N) is what the first look leaves of a vector: its scale, t, the bound of the products of
    pairs, and the highest score that the nearest code can have.
    """
    d = tl.arange(0, BD).to(tl.int64)
    column = tl.arange(0, BN)
    codes = column[None, :] * Dp + tl.arange(0, BD)[:, None]  # (BD, BN): the codes' block, transposed
    scale = tl.load(seen + n, mask=valid, other=0)
    t = tl.load(seen + N + n, mask=valid, other=0)
    err = tl.load(seen + 2 * N + n, mask=valid, other=0)
    limit = tl.load(seen + 3 * N + n, mask=valid, other=0) + err
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


@triton.jit
def write_codes(
    x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n, index, valid, finite, D, BD: tl.constexpr
):  # fmt: skip
    """Writes code vectors for a block of vectors, NaN for a vector that isn't finite, and |x - e|^2."""
    ACC: tl.constexpr = errors.dtype.element_ty
    total = tl.zeros(index.shape, ACC)
    for d0 in range(0, D, BD):
        d = (d0 + tl.arange(0, BD)).to(tl.int64)
        inside = valid[:, None] & (d < D)[None, :]
        e = tl.load(codebook + (index * ek)[:, None] + (d * ed)[None, :], mask=inside, other=0).to(ACC)
        e = tl.where(finite[:, None] | (d >= D)[None, :], e, float("nan"))
        difference = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0).to(ACC) - e
        total += tl.sum(difference * difference, axis=1)
        tl.store(quantized + to[:, None] + (d * qd)[None, :], e, mask=inside)
    tl.store(errors + n, total, mask=valid)


@triton.jit(noinline=True)
def look_again(
    x, begin, end, listed, b, c, sa, sb, sc, sd, pivot, hi, lo, half, seen, N, codebook, ek, ed, D, Dp, K, Kp,
    indices, quantized, qa, qb, qc, qd, errors,
    WIDE: tl.constexpr, DIMS: tl.constexpr, WRITE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The second look at the vectors from place ``begin`` to ``end`` of the list, at most BM.

    A function of its own: it compiles sooner, and its values don't take registers in the first look.
    """
    place = begin + tl.arange(0, BM)
    there = place < end
    n = tl.load(listed + place, mask=there, other=0)
    at = vector_offsets(n, b, c, sa, sb, sc, DIMS)
    index = exact_nearest(
        x, at, sd, n, there, pivot, hi, lo, half, seen, N, codebook, ek, ed, D, Dp, K, Kp, WIDE, BM, BN, BD
    ).to(tl.int64)
    tl.store(indices + n, index, mask=there)
    if WRITE:
        to = vector_offsets(n, b, c, qa, qb, qc, DIMS)
        write_codes(
            x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n, index, there, there, D, 16
        )  # fmt: skip
