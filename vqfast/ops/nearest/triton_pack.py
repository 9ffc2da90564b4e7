"""Packs the codebook for the search on a GPU: centred, scaled, as pairs of fp16 numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import exponent, is_finite, power

FAR = tl.constexpr(2.0**100)  # more than any score of a code: for padding and code vectors that aren't finite
LARGEST = tl.constexpr(60000.0)  # fp16 ends at 65504


@triton.jit(do_not_specialize=["K", "step", "samples", "listed", "counters"])
def _prepare(
    codebook, sg, sk, sd, pivot, hi, scratch, longs, listed, counters, K, Kp, D, Dp, step, samples,
    WIDE: tl.constexpr, SAMPLES: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Packs one block of one codebook's code vectors, and zeroes the search's counters.

    - ``pivot (G, Kp // BK, Dp)``: the mean of every ``step``-th code vector. Each block computes it for
      itself, so that none waits for another.
    - ``hi`` (2, G, Kp, Dp): the scaled code vectors e^ as pairs of fp16 numbers, the large ones first.
    - ``scratch`` float32: half (G, Kp), |e^|^2 / 2; parts (G, 4, Kp // BK), of each block: how far the
      sampled code vectors lie from the pivot, then E, R1 and R2 of the bound.
    - ``longs`` int64, from ``listed`` on: ``counters`` zeros.
    """
    blocks = Kp // BK
    groups = tl.num_programs(0) // blocks
    g = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    for start in range(tl.program_id(0) * 256, counters, tl.num_programs(0) * 256):
        at = start + tl.arange(0, 256)
        tl.store(longs + listed + at, tl.zeros([256], tl.int64), mask=at < counters)
    codebook += g * sg
    pivot += (g * blocks + block) * Dp
    lo = hi + groups.to(tl.int64) * Kp * Dp
    sample = tl.arange(0, SAMPLES).to(tl.int64)
    far = tl.zeros([BD], tl.float32)
    for d0 in range(0, Dp, BD):
        d = (d0 + tl.arange(0, BD)).to(tl.int64)
        inside = (sample < samples)[:, None] & (d < D)[None, :]
        at = (sample * step * sk)[:, None] + (d * sd)[None, :]
        e = tl.load(codebook + at, mask=inside, other=float("nan")).to(tl.float64)
        good = is_finite(e)
        count = tl.sum(good.to(tl.float64), axis=0)
        p = (tl.sum(tl.where(good, e, 0), axis=0) / tl.maximum(count, 1.0)).to(WIDE)
        tl.store(pivot + d, p)
        away = tl.max(tl.where(good, tl.abs(e - p[None, :].to(tl.float64)), 0), axis=0).to(tl.float32)
        # not zero, so that the exponent stays moderate where code vectors coincide
        far = tl.maximum(far, tl.maximum(away, tl.abs(p).to(tl.float32) * 2.0**-14))
    tl.debug_barrier()  # the block reads its pivot
    reach = tl.max(far, axis=0)
    scale = power(-exponent(reach)).to(tl.float64)

    k = (block * BK + tl.arange(0, BK)).to(tl.int64)
    square = tl.zeros([BK], tl.float64)
    r1 = tl.zeros([BK], tl.float32)
    r2 = tl.zeros([BK], tl.float32)
    good = k < K
    for d0 in range(0, Dp, BD):
        d = (d0 + tl.arange(0, BD)).to(tl.int64)
        inside = (k < K)[:, None] & (d < D)[None, :]
        e = tl.load(codebook + (k * sk)[:, None] + (d * sd)[None, :], mask=inside, other=0).to(tl.float64)
        p = tl.load(pivot + d).to(tl.float64)
        good = good & (tl.min(is_finite(e).to(tl.int32), axis=1) == 1)
        e = tl.where(inside & is_finite(e), (e - p[None, :]) * scale, 0)
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
    half = tl.where(good, tl.minimum(square * 0.5, FAR * 0.5).to(tl.float32), FAR)
    tl.store(scratch + g * Kp + k, half)
    parts = scratch + groups.to(tl.int64) * Kp + g * 4 * blocks + block
    tl.store(parts, reach)
    tl.store(parts + blocks, tl.max(tl.sqrt(tl.where(good, square, 0).to(tl.float32)), axis=0))
    tl.store(parts + 2 * blocks, tl.max(tl.sqrt(tl.where(good, r1, 0)), axis=0))
    tl.store(parts + 3 * blocks, tl.max(tl.sqrt(tl.where(good, r2, 0)), axis=0))


@triton.jit
def largest_parts(parts, blocks, BLOCK: tl.constexpr):
    """The exponent of the code vectors, and E, R1 and R2, from the ``parts`` of one codebook."""
    e = tl.zeros([BLOCK], tl.float32)
    e1 = tl.zeros([BLOCK], tl.float32)
    e2 = tl.zeros([BLOCK], tl.float32)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < blocks
        e = tl.maximum(e, tl.load(parts + blocks + at, mask=inside, other=0))
        e1 = tl.maximum(e1, tl.load(parts + 2 * blocks + at, mask=inside, other=0))
        e2 = tl.maximum(e2, tl.load(parts + 3 * blocks + at, mask=inside, other=0))
    return exponent(tl.load(parts)), tl.max(e, axis=0), tl.max(e1, axis=0), tl.max(e2, axis=0)
