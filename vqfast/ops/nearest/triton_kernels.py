"""Nearest code on a GPU: one fp16 tensor-core product certifies nearly every row, float64 decides the others.

Two kernels after a small one that packs the codebook:

- ``_search`` reads each row once, streams the codes and keeps the best and the second best score. A row whose
  two differ by more than what rounding can do has its code. The others go on a list.
- ``_recheck`` goes through the codes again for the listed rows, with a product of fp16 pairs (hi + lo), and
  takes the float64 distance of every code that rounding leaves in the running: two or three a row.

THE BOUND. For one row write x and e_k for the exact inputs, p for the pivot (any vector: distances don't
depend on it, so that the sample mean, rounded, is exact enough), and in units of powers of two, which don't
round, ``x^ = (x - p) / 2^a`` (a: exponent of the row's largest channel) and ``e^_k = (e_k - p) / 2^c`` (c:
of the codes'). Minimising ||x - e_k||^2 is minimising ``s_k = t |e^_k|^2 / 2 - x^.e^_k``, ``t = 2^(c -
a)``. Let u = 2^-24, X = |x^|, E = max |e^_k|, S = X E + t E^2 / 2, which bounds |s_k|. What is computed
differs by:

1. ``x - p`` is rounded once, relative u in each channel; codes likewise: 2 u X E by Cauchy and Schwarz
   (gradual underflow adds 2^-126 a channel: under the 2^-50 that every norm below is raised by).
2. fp16: x~ = hi + r1 = hi + lo + r2, both differences exact in float32, so that r1 and r2 (and for the codes
   R1 = max |r1|, R2 = max |r2|) are *measured*, whatever fp16 did: rounding, subnormals, saturation.
   One product: x~.e~ - hi.hi' = r1.e~ + hi.r1'        is at most |r1| E + (X + |r1|) R1.
   Three:      x~.e~ - (hi + lo).hi' - hi.lo' = r2.e~ + hi.r2' + lo.r1' + r2.(..)
                                                       is at most |r2| E + (X + |r1|) R2 + 2 |r1| R1.
3. Products of fp16 numbers are exact in float32. A sum of n of them, in any order or grouping, with the
   operands of each step aligned to the largest and cut off (not rounded) at 24 bits, errs by at most 2^-23
   S for each product and for each addition: 2 n 2^-23 S. A block of channels is one such sum (n = products
   in it); the blocks are then subtracted from the score in float32: blocks * u S more.
4. ``t |e^|^2 / 2``: summed in float64, rounded to float32, times t (exact but for the subtraction's
   rounding) : 2 u S. t is held within 2^-60 .. 2^20: below, the term is off by 2^-60 E^2 at most; above, a
   is raised, nothing is off.
5. ``_search`` puts the code's number into the low bits of its score: 2 BN u |score|, taken at the two scores.

Together ``err = 1.01 (point 2 + (2 n + blocks + 16) u' S + 2^-60 (E + E^2))`` with u' = 2^-23; 1.01 covers
the rounding of the bound itself and of the norms (relative (D + 2) u). If the second best score exceeds the
best by more than 2 err (and point 5), no other code is nearer. Else the true best's score is at most ``best
+ err``, so in ``_recheck`` its computed score is at most that + its own err, and at most its running best +
2 err: every code that could be nearest, or tie, gets its distance by differences in float64, in increasing
order, and only a smaller one replaces it: the lowest index wins. A comparison with NaN or infinity
(overflow anywhere above) fails on the side of more float64. It may be slow, not wrong. fp16 subnormals must
count in the product: NVIDIA's and gfx942's do; do not run this where they are flushed (gfx90a).

FLOORS (H100: 3.0 TB/s, 800 TFLOP/s) for N, K, D = 131072, 512, 64: 8.6 GFLOP, 11 us; 34 MB read, 1 MB
written, 12 us (with z_q 68 MB, 23 us). The epilogue is about 9 issue slots a score (multiply-subtract,
pack, min, compare, select, min): 67 M scores / (132 x 128 lanes x 1.7 GHz) x 9 = 21 us, more than the
product. Predicted 35 to 45 us and 10 us for packing and recheck; 3.5 % of Gaussian rows are rechecked.
For 131072, 8192, 256: 550 GFLOP, 0.69 ms; 134 MB, 0.05 ms; epilogue 0.34 ms, hidden only where two blocks
share a multiprocessor. Predicted 1.0 to 1.3 ms, of which 0.15 ms to recheck 8 % of Gaussian rows."""

from __future__ import annotations

import triton
import triton.language as tl

MEASURE = tl.constexpr(64)  # channels that a wider row is measured by at a time, to spare registers
FAR = tl.constexpr(2.0**100)  # a score half no code can have: padding, and codes that are not finite
LARGEST = tl.constexpr(60000.0)  # fp16 ends at 65504


@triton.jit
def _exponent(m):
    """``floor(log2 m)`` of a float32 that isn't negative, within -126..126."""
    return tl.minimum(tl.maximum((m.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)


@triton.jit
def _power(e):
    """``2 ** e`` in float32, for an int32 ``e`` in -126..127."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def row_offsets(n, b, c, sa, sb, sc, DIMS: tl.constexpr):
    """Where row ``n`` (int64) of an (a, b, c) grid of rows begins; only the last ``DIMS`` are unravelled."""
    if DIMS == 1:
        offsets = n * sc
    elif DIMS == 2:
        offsets = (n // c) * sb + (n % c) * sc
    else:
        offsets = (n // c // b) * sa + (n // c % b) * sb + (n % c) * sc
    return offsets


@triton.jit
def _centre(
    codebook,
    sg,
    sk,
    sd,
    pivot,
    stats,
    D,
    Dp,
    step,
    samples,
    WIDE: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """``pivot (G, Dp)``: mean of every ``step``-th code; ``stats[g, 0]``: how far those codes lie from it."""
    g = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0).to(tl.int64) * BD + tl.arange(0, BD)
    total = tl.zeros([BD], tl.float64)
    count = tl.zeros([BD], tl.float64)
    for k0 in range(0, samples, BK):
        k = (k0 + tl.arange(0, BK)).to(tl.int64)
        inside = (k < samples)[:, None] & (d < D)[None, :]
        e = tl.load(
            codebook + g * sg + k[:, None] * (step * sk) + d[None, :] * sd, mask=inside, other=float("nan")
        )
        good = _finite(e)
        total += tl.sum(tl.where(good, e, 0).to(tl.float64), axis=0)
        count += tl.sum(good.to(tl.float64), axis=0)
    p = (total / tl.maximum(count, 1.0)).to(WIDE)
    tl.store(pivot + g * Dp + d, p)
    far = tl.abs(p).to(tl.float32) * 2.0**-14  # a floor: codes that nearly coincide still get a sane exponent
    for k0 in range(0, samples, BK):
        k = (k0 + tl.arange(0, BK)).to(tl.int64)
        inside = (k < samples)[:, None] & (d < D)[None, :]
        e = tl.load(
            codebook + g * sg + k[:, None] * (step * sk) + d[None, :] * sd, mask=inside, other=float("nan")
        )
        away = tl.abs(e.to(tl.float64) - p[None, :].to(tl.float64))
        far = tl.maximum(far, tl.max(tl.where(_finite(e), away, 0), axis=0).to(tl.float32))
    tl.atomic_max(stats + g * 4, tl.max(_bits(far), axis=0))


@triton.jit
def _pack(
    codebook, sg, sk, sd, pivot, stats, hi, lo, half, K, Kp, D, Dp, BK: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """``hi``, ``lo`` (G, Kp, Dp): scaled codes e^ as two fp16; ``half`` (G, Kp): |e^|^2 / 2; E, R1, R2."""
    g = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0).to(tl.int64) * BK + tl.arange(0, BK)
    scale = _power(-_exponent(tl.load(stats + g * 4).to(tl.float32, bitcast=True))).to(tl.float64)
    square = tl.zeros([BK], tl.float64)
    r1 = tl.zeros([BK], tl.float32)
    r2 = tl.zeros([BK], tl.float32)
    good = k < K
    for d0 in range(0, Dp, BD):
        d = (d0 + tl.arange(0, BD)).to(tl.int64)
        inside = (k < K)[:, None] & (d < D)[None, :]
        e = tl.load(codebook + g * sg + k[:, None] * sk + d[None, :] * sd, mask=inside, other=0).to(
            tl.float64
        )
        p = tl.load(pivot + g * Dp + d).to(tl.float64)
        good = good & (tl.min(_finite(e).to(tl.int32), axis=1) == 1)
        e = tl.where(inside & _finite(e), (e - p[None, :]) * scale, 0)
        square += tl.sum(e * e, axis=1)
        e = e.to(tl.float32)
        h = tl.minimum(tl.maximum(e, -LARGEST), LARGEST).to(tl.float16)
        rest = e - h.to(tl.float32)
        low = tl.minimum(tl.maximum(rest, -LARGEST), LARGEST).to(tl.float16)
        r1 += tl.sum(rest * rest, axis=1)
        rest = rest - low.to(tl.float32)
        r2 += tl.sum(rest * rest, axis=1)
        at = (g * Kp + k)[:, None] * Dp + d[None, :]
        tl.store(hi + at, h)
        tl.store(lo + at, low)
    tl.store(half + g * Kp + k, tl.where(good, tl.minimum(square * 0.5, FAR * 0.5).to(tl.float32), FAR))
    tl.atomic_max(stats + g * 4 + 1, tl.max(_bits(tl.sqrt(tl.where(good, square, 0).to(tl.float32))), axis=0))
    tl.atomic_max(stats + g * 4 + 2, tl.max(_bits(tl.sqrt(tl.where(good, r1, 0))), axis=0))
    tl.atomic_max(stats + g * 4 + 3, tl.max(_bits(tl.sqrt(tl.where(good, r2, 0))), axis=0))


@triton.jit
def _centred(x, at, valid, d, sd, pivot, D, WIDE: tl.constexpr):
    """A block of ``x - p`` (BM, BD), 0 where x isn't finite, and whether each row is finite in it."""
    values = tl.load(x + at[:, None] + (d * sd)[None, :], mask=valid[:, None] & (d < D)[None, :], other=0)
    values = values.to(WIDE)
    p = tl.load(pivot + d)  # zero beyond D
    finite = _finite(values)
    return tl.where(finite, values - p[None, :], 0), tl.min(finite.to(tl.int32), axis=1) == 1


@triton.jit
def _halves(centred, scale):
    """``x^ = hi + lo + rest``: (hi, lo, |x^|^2, |x^ - hi|^2, |rest|^2)."""
    x = (centred * scale[:, None].to(centred.dtype)).to(tl.float32)
    hi = x.to(tl.float16)
    rest = x - hi.to(tl.float32)
    lo = rest.to(tl.float16)
    left = rest - lo.to(tl.float32)
    return hi, lo, tl.sum(x * x, axis=1), tl.sum(rest * rest, axis=1), tl.sum(left * left, axis=1)


@triton.jit
def _row_exponent(far, code_exponent):
    """The row's exponent a, and t = 2^(c - a); see the bound, point 4."""
    a = tl.maximum(_exponent(far), code_exponent - 20)
    return a, _power(tl.maximum(code_exponent - a, -60))


@triton.jit
def _measure(x, at, valid, sd, pivot, D, code_exponent, WIDE: tl.constexpr, BD: tl.constexpr):
    """(2^-a, t, finite, |x^|^2, |r1|^2, |r2|^2) of a block of rows, read twice."""
    d = tl.arange(0, BD).to(tl.int64)
    far = tl.zeros(at.shape, tl.float32)
    finite = tl.full(at.shape, True, tl.int1)
    for d0 in range(0, D, BD):
        centred, good = _centred(x, at, valid, d0 + d, sd, pivot, D, WIDE)
        far = tl.maximum(far, tl.max(tl.abs(centred), axis=1).to(tl.float32))
        finite = finite & good
    a, t = _row_exponent(far, code_exponent)
    scale = _power(-a)
    x2 = tl.zeros(at.shape, tl.float32)
    r1 = tl.zeros(at.shape, tl.float32)
    r2 = tl.zeros(at.shape, tl.float32)
    for d0 in range(0, D, BD):
        centred, good = _centred(x, at, valid, d0 + d, sd, pivot, D, WIDE)
        _hi, _lo, x2_, r1_, r2_ = _halves(centred, scale)
        x2 += x2_
        r1 += r1_
        r2 += r2_
    return scale, t, finite, x2, r1, r2


@triton.jit
def _error(t, x2, r1, r2, stats, n: tl.constexpr, SPLITS: tl.constexpr):
    """(err, S) of the bound; ``n`` counts point 3's products, additions and blocks."""
    tiny = 2.0**-50
    e = 1.001 * tl.load(stats + 1).to(tl.float32, bitcast=True) + tiny
    e1 = tl.load(stats + 2).to(tl.float32, bitcast=True) + tiny
    e2 = tl.load(stats + 3).to(tl.float32, bitcast=True) + tiny
    norm = tl.sqrt(x2) + tiny
    r1 = tl.sqrt(r1) + tiny
    r2 = tl.sqrt(r2) + tiny
    if SPLITS == 1:  # noqa: SIM108
        split = r1 * e + (norm + r1) * e1
    else:
        split = r2 * e + (norm + r1) * e2 + 2 * r1 * e1
    size = norm * e + t * (0.5 * e * e)
    return 1.01 * (split + size * (n * 2.0**-23) + (e + e * e) * 2.0**-60)


@triton.jit
def write_codes(
    x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n, index, valid, finite, D, BD: tl.constexpr
):  # fmt: skip
    """The quantiser's outputs for a block of rows: codes, NaN for a row that isn't finite, and |x - e|^2."""
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
    """One block of rows against all codes of its codebook; see the module."""
    g = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    at = g * sg + row_offsets(n, b, c, sa, sb, sc, DIMS)
    pivot += g * Dp
    stats += g * 4
    hi += g * Kp * Dp
    lo += g * Kp * Dp
    half += g * Kp
    code_exponent = _exponent(tl.load(stats).to(tl.float32, bitcast=True))

    d = tl.arange(0, BD).to(tl.int64)
    if WHOLE and (BD <= MEASURE or SPLITS == 3):
        centred, finite = _centred(x, at, valid, d, sd, pivot, D, WIDE)
        a, t = _row_exponent(tl.max(tl.abs(centred), axis=1).to(tl.float32), code_exponent)
        scale = _power(-a)
        x_hi, x_lo, x2, r1, r2 = _halves(centred, scale)
    else:
        scale, t, finite, x2, r1, r2 = _measure(
            x, at, valid, sd, pivot, D, code_exponent, WIDE, BD if BD < MEASURE else MEASURE
        )
        if WHOLE:  # from the cache
            centred, _good = _centred(x, at, valid, d, sd, pivot, D, WIDE)
            x_hi = (centred * scale[:, None].to(WIDE)).to(tl.float32).to(tl.float16)

    err = _error(t, x2, r1, r2, stats, 2 * SPLITS * BD + BLOCKS + 16, SPLITS)
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
                centred, _good = _centred(x, at, valid, d0 + d, sd, pivot, D, WIDE)
                part = (centred * scale[:, None].to(WIDE)).to(tl.float32).to(tl.float16)
                score -= tl.dot(part, tl.load(hi + codes + d0))
        hi += BN * Dp
        lo += BN * Dp
        bits = (_bits(score) & -BN) | column[None, :]  # no two scores of the block are alike now
        first = tl.min(bits.to(tl.float32, bitcast=True), axis=1)
        others = tl.where(bits == _bits(first)[:, None], float("inf"), bits.to(tl.float32, bitcast=True))
        second = tl.minimum(tl.minimum(second, tl.min(others, axis=1)), tl.maximum(best, first))
        block = tl.where(first < best, j, block)
        best = tl.minimum(best, first)

    index = tl.where(finite, block + (_bits(best) & (BN - 1)), 0)
    tl.store(indices + g * N + n, index.to(tl.int64), mask=valid)
    if WRITE:
        to = row_offsets(n, b, c, qa, qb, qc, DIMS)
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
    """The listed rows again: float64 distances to every code that may be nearest; see the module."""
    g = tl.program_id(1).to(tl.int64)
    pivot += g * Dp
    stats += g * 4
    code_exponent = _exponent(tl.load(stats).to(tl.float32, bitcast=True))
    count = tl.load(waiting + g)
    d = tl.arange(0, BD).to(tl.int64)
    column = tl.arange(0, BN)
    codes = column[None, :] * Dp + tl.arange(0, BD)[:, None]
    for start in range(tl.program_id(0) * BM, count, tl.num_programs(0) * BM):
        slot = start + tl.arange(0, BM)
        valid = slot < count
        n = tl.load(listed + g * N + slot, mask=valid, other=0)
        at = g * sg + row_offsets(n, b, c, sa, sb, sc, DIMS)
        scale, t, _rows_finite, x2, r1, r2 = _measure(
            x, at, valid, sd, pivot, D, code_exponent, WIDE, BD if BD < MEASURE else MEASURE
        )
        err = _error(t, x2, r1, r2, stats, 6 * BD + BLOCKS + 16, 3)
        limit = tl.load(ceiling + g * N + n, mask=valid, other=0) + err

        nearest = tl.full([BM], float("inf"), tl.float64)
        index = tl.zeros([BM], tl.int32)
        code_hi = hi + g * Kp * Dp
        code_lo = lo + g * Kp * Dp
        for j in range(0, Kp, BN):
            score = t[:, None] * tl.load(half + g * Kp + j + column)[None, :]
            for d0 in range(0, D, BD):
                centred, _good = _centred(x, at, valid, d0 + d, sd, pivot, D, WIDE)
                x_hi, x_lo, _x2, _r1, _r2 = _halves(centred, scale)
                e_hi = tl.load(code_hi + codes + d0)
                product = tl.dot(x_lo, e_hi)
                product = tl.dot(x_hi, tl.load(code_lo + codes + d0), product)
                score -= tl.dot(x_hi, e_hi, product)
            code_hi += BN * Dp
            code_lo += BN * Dp
            limit = tl.minimum(limit, tl.min(score, axis=1) + 2 * err)
            running = (valid[:, None] & (j + column < K)[None, :] & ~(score > limit[:, None])).to(tl.int32)
            while tl.max(tl.max(running, axis=1), axis=0) > 0:
                # the next code of each row, float64 distance by differences
                next_column = tl.min(tl.where(running > 0, column[None, :], BN), axis=1)
                has = next_column < BN
                k = tl.where(has, j + next_column, 0)
                distance = tl.zeros([BM], tl.float64)
                for d0 in range(0, D, BD):
                    inside = has[:, None] & (d0 + d < D)[None, :]
                    row = tl.load(x + at[:, None] + ((d0 + d) * sd)[None, :], mask=inside, other=0)
                    at_code = eg * g + k.to(tl.int64) * ek
                    code = tl.load(
                        codebook + at_code[:, None] + ((d0 + d) * ed)[None, :], mask=inside, other=0
                    )
                    difference = row.to(tl.float64) - code.to(tl.float64)
                    distance += tl.sum(difference * difference, axis=1)
                distance = tl.where(distance == distance, distance, float("inf"))  # of a NaN code
                index = tl.where(has & (distance < nearest), k, index)
                nearest = tl.where(has, tl.minimum(nearest, distance), nearest)
                running = tl.where(column[None, :] == next_column[:, None], 0, running)
        tl.store(indices + g * N + n, index.to(tl.int64), mask=valid)
        if WRITE:
            to = row_offsets(n, b, c, qa, qb, qc, DIMS)
            write_codes(
                x, at, sd, codebook, ek, ed, quantized, to, qd, errors, n,
                index.to(tl.int64), valid, valid, D, 16,
            )  # fmt: skip
