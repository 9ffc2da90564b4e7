"""The search for the nearest code on a GPU: narrow products with a bound, float64 where they can't decide.

Two kernels after those that pack the codebook (``triton_pack.py``):

- ``_search`` reads each vector once, streams the codebook, and keeps the best and the second best score, from
  one fp16 product. Nearly always the two differ by more than rounding can explain; then the code is certain.
  The other vectors go on a list.
- ``_recheck`` goes through the codebook again for the listed vectors, with a product of fp16 pairs (hi + lo).
  It computes the float64 distance of every code that rounding doesn't exclude: two or three for each vector.

How much rounding can explain is in ``triton_bound.py``.

FLOORS (H100: 3.0 TB/s, 800 TFLOP/s) for N, K, D = 131072, 512, 64: 8.6 GFLOP, 11 us; 34 MB read, 1 MB
written, 12 us (with z_q 68 MB, 23 us). The epilogue is about 9 issue slots a score (multiply-subtract,
pack, min, compare, select, min): 67 M scores / (132 x 128 lanes x 1.7 GHz) x 9 = 21 us, more than the
product. Predicted 35 to 45 us and 10 us for packing and recheck; 3.5 % of Gaussian vectors are rechecked.
For 131072, 8192, 256: 550 GFLOP, 0.69 ms; 134 MB, 0.05 ms; epilogue 0.34 ms, hidden only where two blocks
share a multiprocessor. Predicted 1.0 to 1.3 ms, of which 0.15 ms to recheck 8 % of Gaussian vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import (
    MEASURE,
    bits_of,
    centred_block,
    error_bound,
    exponent,
    measure,
    power,
    split_halves,
    vector_exponent,
    vector_offsets,
)


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


@triton.jit
def _search(
    x, sg, sa, sb, sc, sd, N, b, c, pivot, hi, lo, half, stats, indices, waiting, listed, ceiling,
    codebook, ek, ed, quantized, qa, qb, qc, qd, errors, tiles, D, Dp, Kp,
    WIDE: tl.constexpr, DIMS: tl.constexpr, SPLITS: tl.constexpr, WHOLE: tl.constexpr, WRITE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Searches all codes of its codebook for one block of vectors; see the module."""
    g = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    at = g * sg + vector_offsets(n, b, c, sa, sb, sc, DIMS)
    pivot += g * Dp
    stats += g * 4
    hi += g * Kp * Dp
    lo += g * Kp * Dp
    half += g * Kp
    code_exponent = exponent(tl.load(stats).to(tl.float32, bitcast=True))

    d = tl.arange(0, BD).to(tl.int64)
    if WHOLE and (BD <= MEASURE or SPLITS == 3):
        centred, finite = centred_block(x, at, valid, d, sd, pivot, D, WIDE)
        a, t = vector_exponent(tl.max(tl.abs(centred), axis=1).to(tl.float32), code_exponent)
        scale = power(-a)
        x_hi, x_lo, x2, r1, r2 = split_halves(centred, scale)
    else:
        scale, t, finite, x2, r1, r2 = measure(
            x, at, valid, sd, pivot, D, code_exponent, WIDE, BD if BD < MEASURE else MEASURE
        )
        if WHOLE:  # from the cache
            centred, _good = centred_block(x, at, valid, d, sd, pivot, D, WIDE)
            x_hi = (centred * scale[:, None].to(WIDE)).to(tl.float32).to(tl.float16)

    err = error_bound(t, x2, r1, r2, stats, 2 * SPLITS * BD + BLOCKS + 16, SPLITS)
    best = tl.full([BM], float("inf"), tl.float32)
    second = tl.full([BM], float("inf"), tl.float32)
    block = tl.zeros([BM], tl.int32)
    column = tl.arange(0, BN)
    codes = column[None, :] * Dp + tl.arange(0, BD)[:, None]  # (BD, BN): the codes' block, transposed
    for j in range(0, Kp, BN):
        score = t[:, None] * tl.load(half + j + column)[None, :]
        if WHOLE:
            e_hi = tl.load(hi + codes)
            if SPLITS == 1:
                score -= tl.dot(x_hi, e_hi)
            else:
                product = tl.dot(x_lo, e_hi)
                product = tl.dot(x_hi, tl.load(lo + codes), product)
                score -= tl.dot(x_hi, e_hi, product)
        else:
            for d0 in range(0, D, BD):
                centred, _good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
                part = (centred * scale[:, None].to(WIDE)).to(tl.float32).to(tl.float16)
                score -= tl.dot(part, tl.load(hi + codes + d0))
        hi += BN * Dp
        lo += BN * Dp
        bits = (bits_of(score) & -BN) | column[None, :]  # makes all scores of the block differ
        first = tl.min(bits.to(tl.float32, bitcast=True), axis=1)
        others = tl.where(bits == bits_of(first)[:, None], float("inf"), bits.to(tl.float32, bitcast=True))
        second = tl.minimum(tl.minimum(second, tl.min(others, axis=1)), tl.maximum(best, first))
        block = tl.where(first < best, j, block)
        best = tl.minimum(best, first)

    index = tl.where(finite, block + (bits_of(best) & (BN - 1)), 0)
    tl.store(indices + g * N + n, index.to(tl.int64), mask=valid)
    if WRITE:
        to = vector_offsets(n, b, c, qa, qb, qc, DIMS)
        write_codes(
            x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n,
            index.to(tl.int64), valid, finite, D, 16,
        )  # fmt: skip
    packing = (1.01 * 2.0**-23 * BN) * (tl.abs(best) + tl.abs(second))
    uncertain = valid & finite & ~(second - best > 2 * err + packing)
    slot = tl.atomic_add(waiting + g + tl.zeros([BM], tl.int32), 1, mask=uncertain)
    tl.store(listed + g * N + slot, n, mask=uncertain)
    tl.store(ceiling + g * N + n, best + packing + err, mask=uncertain)


@triton.jit
def _recheck(
    x, sg, sa, sb, sc, sd, N, b, c, pivot, hi, lo, half, stats, indices, waiting, listed, ceiling,
    codebook, eg, ek, ed, quantized, qa, qb, qc, qd, errors, D, Dp, K, Kp,
    WIDE: tl.constexpr, DIMS: tl.constexpr, WRITE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Computes float64 distances of the listed vectors to every code that may be nearest; see the module."""
    g = tl.program_id(1).to(tl.int64)
    pivot += g * Dp
    stats += g * 4
    code_exponent = exponent(tl.load(stats).to(tl.float32, bitcast=True))
    count = tl.load(waiting + g)
    d = tl.arange(0, BD).to(tl.int64)
    column = tl.arange(0, BN)
    codes = column[None, :] * Dp + tl.arange(0, BD)[:, None]
    for start in range(tl.program_id(0) * BM, count, tl.num_programs(0) * BM):
        slot = start + tl.arange(0, BM)
        valid = slot < count
        n = tl.load(listed + g * N + slot, mask=valid, other=0)
        at = g * sg + vector_offsets(n, b, c, sa, sb, sc, DIMS)
        scale, t, _all_finite, x2, r1, r2 = measure(
            x, at, valid, sd, pivot, D, code_exponent, WIDE, BD if BD < MEASURE else MEASURE
        )
        err = error_bound(t, x2, r1, r2, stats, 6 * BD + BLOCKS + 16, 3)
        limit = tl.load(ceiling + g * N + n, mask=valid, other=0) + err

        nearest = tl.full([BM], float("inf"), tl.float64)
        index = tl.zeros([BM], tl.int32)
        code_hi = hi + g * Kp * Dp
        code_lo = lo + g * Kp * Dp
        for j in range(0, Kp, BN):
            score = t[:, None] * tl.load(half + g * Kp + j + column)[None, :]
            for d0 in range(0, D, BD):
                centred, _good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
                x_hi, x_lo, _x2, _r1, _r2 = split_halves(centred, scale)
                e_hi = tl.load(code_hi + codes + d0)
                product = tl.dot(x_lo, e_hi)
                product = tl.dot(x_hi, tl.load(code_lo + codes + d0), product)
                score -= tl.dot(x_hi, e_hi, product)
            code_hi += BN * Dp
            code_lo += BN * Dp
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
                    at_code = eg * g + k.to(tl.int64) * ek
                    code = tl.load(
                        codebook + at_code[:, None] + ((d0 + d) * ed)[None, :], mask=inside, other=0
                    )
                    difference = vector.to(tl.float64) - code.to(tl.float64)
                    distance += tl.sum(difference * difference, axis=1)
                distance = tl.where(
                    distance == distance, distance, float("inf")
                )  # of a code vector with a NaN
                index = tl.where(has & (distance < nearest), k, index)
                nearest = tl.where(has, tl.minimum(nearest, distance), nearest)
                running = tl.where(column[None, :] == next_column[:, None], 0, running)
        tl.store(indices + g * N + n, index.to(tl.int64), mask=valid)
        if WRITE:
            to = vector_offsets(n, b, c, qa, qb, qc, DIMS)
            write_codes(
                x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n,
                index.to(tl.int64), valid, valid, D, 16,
            )  # fmt: skip
