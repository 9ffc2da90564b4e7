"""The search for the nearest code on a GPU: narrow products with a bound, float64 where they can't decide.

Two launches. ``_prepare`` (``triton_pack.py``) packs the codebook. ``_search`` reads each vector once,
streams the codebook, and keeps the best three scores of groups of four codes, from one fp16 product. Nearly
always the first two differ by more than rounding can explain; then the code is one of four, whose distances
decide. Nearly always the third does where the second doesn't: then it is one of eight. The other vectors go
on a list.

The list is cut into chunks, and each has a counter. The block that lists a chunk's last vector goes through
the codebook again for the chunk, with a product of fp16 pairs (hi + lo), and computes the float64 distance of
every code that rounding doesn't exclude: two or three for each vector. What remains is the last block's. No
block waits for another.

How much rounding can explain is in ``triton_bound.py``.

FLOORS (H100: 3.0 TB/s, 800 TFLOP/s) for N, K, D = 131072, 512, 64: 8.6 GFLOP, 11 us; 34 MB read, 1 MB
written, 12 us (with z_q 68 MB, 23 us). The loop over the codebook takes 3.3 instructions a score, of which a
minimum or logic has 64 lanes: 67 M scores are 13 us on an H100. Of Gaussian vectors 0.3 % go on the list
there, and 0.9 % for 131072, 8192, 256 (550 GFLOP: 0.69 ms). Without the third score they were 3 and 8 %, and
looking at 8 % again takes 0.66 ms by the same count. None of this has been measured on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import (
    MEASURE,
    centred_block,
    error_bound,
    measure,
    power,
    split_halves,
    vector_exponent,
    vector_offsets,
)
from vqfast.ops.nearest.triton_groups import TILES, group_minima, nearest_of_groups, of_rows, packed
from vqfast.ops.nearest.triton_pack import largest_parts
from vqfast.ops.nearest.triton_recheck import look_again, write_codes

NONE = tl.constexpr(1 << 62)  # no chunk


@triton.jit(do_not_specialize=["N", "K", "tiles", "counters"])
def _search(
    x, sg, sa, sb, sc, sd, N, b, c, pivot, hi, scratch, longs, indices, counters,
    codebook, eg, ek, ed, quantized, qa, qb, qc, qd, errors, tiles, D, Dp, K, Kp,
    WIDE: tl.constexpr, DIMS: tl.constexpr, SPLITS: tl.constexpr, WHOLE: tl.constexpr, WRITE: tl.constexpr,
    PACKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    RM: tl.constexpr, RN: tl.constexpr, RD: tl.constexpr,
):  # fmt: skip
    """Searches all codes of its codebook for one block of vectors; see the module.

    ``pivot``, ``hi``, ``scratch`` and ``longs`` are those of ``_prepare``. ``scratch`` also has room for
    what is seen of a vector (G, 4, N), and ``longs`` begins with the list (G, N). ``longs`` ends with
    ``counters`` counters for each codebook: how many vectors are listed, how many blocks have ended, how many
    vectors each chunk has.
    """
    groups = tl.num_programs(0) // tiles
    g = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    x += g * sg
    at = vector_offsets(n, b, c, sa, sb, sc, DIMS)
    blocks = Kp // PACKED
    pivot += g * blocks * Dp
    lo = hi + groups.to(tl.int64) * Kp * Dp + g * Kp * Dp
    hi += g * Kp * Dp
    half = scratch + g * Kp
    scratch += groups.to(tl.int64) * Kp
    code_exponent, e, e1, e2 = largest_parts(scratch + g * 4 * blocks, blocks, 128)
    seen = scratch + groups * 4 * blocks + g * 4 * N
    listed = longs + g * N
    counter = longs + groups.to(tl.int64) * N + g * counters
    codebook += g * eg
    indices += g * N

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

    if WHOLE:  # so that products are added: not every Triton folds a subtraction
        x_hi = -x_hi
        if SPLITS == 3:
            x_lo = -x_lo
    again = error_bound(t, x2, r1, r2, e, e1, e2, 6 * RD + tl.cdiv(D, RD) + 16, 3)
    tl.store(seen + n, scale, mask=valid)
    tl.store(seen + N + n, t, mask=valid)
    tl.store(seen + 2 * N + n, again, mask=valid)
    err = error_bound(t, x2, r1, r2, e, e1, e2, 2 * SPLITS * BD + tl.cdiv(D, BD) + 16, SPLITS)
    tl.store(seen + 3 * N + n, tl.where(finite, err, -1), mask=valid)
    row_best = tl.full([BM], float("inf"), tl.float32)
    row_second = tl.full([BM], float("inf"), tl.float32)
    row_third = tl.full([BM], float("inf"), tl.float32)
    code = tl.zeros([BM], tl.int32)
    beside = tl.zeros([BM], tl.int32)  # the code of the second best
    column = tl.arange(0, BN)
    width = BD if WHOLE else Dp  # a constant, so that few addresses have to be computed
    codes = column[None, :] * width + tl.arange(0, BD)[:, None]  # (BD, BN): the codes' block, transposed
    code_hi = hi
    code_lo = lo
    for begin in range(0, Kp, BN * TILES):
        best = tl.full([BM, BN // 4], float("inf"), tl.float32)
        second = tl.full([BM, BN // 4], float("inf"), tl.float32)
        for tile in range(0, tl.minimum((Kp - begin) // BN, TILES)):
            score = t[:, None] * tl.load(half + begin + tile * BN + column)[None, :]
            if WHOLE:
                e_hi = tl.load(code_hi + codes)
                if SPLITS == 1:
                    score += tl.dot(x_hi, e_hi)
                else:
                    product = tl.dot(x_lo, e_hi)
                    product = tl.dot(x_hi, tl.load(code_lo + codes), product)
                    score += tl.dot(x_hi, e_hi, product)
            else:
                for d0 in range(0, D, BD):
                    centred, _good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
                    part = (centred * -scale[:, None].to(WIDE)).to(tl.float32).to(tl.float16)
                    score += tl.dot(part, tl.load(code_hi + codes + d0))
            code_hi += BN * width
            code_lo += BN * width
            group = packed(group_minima(score, BM, BN), tile)
            second = tl.minimum(second, tl.maximum(best, group))
            best = tl.minimum(best, group)
        first, start, following, next_start, third = of_rows(best, second, begin, BN)
        crossed = tl.minimum(tl.maximum(row_best, following), tl.maximum(row_second, first))
        row_third = tl.minimum(tl.minimum(row_third, third), crossed)
        if_new = tl.where(row_best < following, code, next_start)
        beside = tl.where(first < row_best, if_new, tl.where(first < row_second, start, beside))
        row_second = tl.minimum(tl.minimum(row_second, following), tl.maximum(row_best, first))
        code = tl.where(first < row_best, start, code)
        row_best = tl.minimum(row_best, first)

    # Again, by sums of which the compiler doesn't know that they are the same (blocks of _prepare are whole):
    # so that nothing of it takes registers in the loop.
    n = (tl.program_id(0) % tiles + Kp % PACKED).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    at = vector_offsets(n, b, c, sa, sb, sc, DIMS)
    tl.debug_barrier()
    err = tl.load(seen + 3 * N + n, mask=valid, other=-1)
    finite = ~(err < 0)
    packing = 1.01 * 2.0**-23 * TILES
    both = ~(row_second - row_best > 2 * err + packing * (tl.abs(row_best) + tl.abs(row_second)))
    packing *= tl.abs(row_best) + tl.abs(row_third)
    clear = row_third - row_best > 2 * err + packing
    usable = valid & finite & clear
    index, certain = nearest_of_groups(
        x, at, sd, codebook, ek, ed, code, beside, usable, both, K, D, WIDE, 16
    )  # fmt: skip
    certain = (certain & clear) | ~finite
    index = tl.where(finite, index, 0)
    tl.store(indices + n, index.to(tl.int64), mask=valid & certain)
    if WRITE:
        to = vector_offsets(n, b, c, qa, qb, qc, DIMS)
        write_codes(
            x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n,
            index.to(tl.int64), valid & certain, finite, D, 16,
        )  # fmt: skip

    uncertain = valid & ~certain
    slot = tl.atomic_add(counter + tl.zeros([BM], tl.int32), 1, mask=uncertain, sem="relaxed")
    tl.store(listed + slot, n, mask=uncertain)
    tl.store(seen + 3 * N + n, row_best + packing + err, mask=uncertain)
    tl.debug_barrier()
    chunk = slot // RM
    before = tl.atomic_add(counter + 2 + chunk, 1, mask=uncertain, sem="acq_rel")
    chunk = tl.where(uncertain & (before == RM - 1), chunk, NONE)
    last = tl.atomic_add(counter + 1, 1, sem="acq_rel") == tiles - 1
    tl.debug_barrier()
    total = tl.load(counter, mask=last, other=0, volatile=True)
    rest = tl.where(total % RM > 0, total // RM, NONE)
    number = tl.minimum(tl.min(chunk, axis=0), rest)
    while number < NONE:
        look_again(
            x, number * RM, tl.where(number == rest, total, number * RM + RM), listed, b, c, sa, sb, sc, sd,
            pivot, hi, lo, half, seen, N, codebook, ek, ed, D, Dp, K, Kp, indices, quantized, qa, qb, qc, qd,
            errors, WIDE, DIMS, WRITE, RM, RN, RD,
        )  # fmt: skip
        chunk = tl.where(chunk == number, NONE, chunk)
        rest = tl.where(rest == number, NONE, rest)
        number = tl.minimum(tl.min(chunk, axis=0), rest)
