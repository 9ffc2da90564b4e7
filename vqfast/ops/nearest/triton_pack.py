"""Packs the codebook for the search on a GPU: centred, scaled, as pairs of fp16 numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import bits_of, exponent, is_finite, power

FAR = tl.constexpr(2.0**100)  # more than any score of a code: for padding and code vectors that aren't finite
LARGEST = tl.constexpr(60000.0)  # fp16 ends at 65504


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
    """``pivot (G, Dp)``: mean of every ``step``-th code vector; ``stats[g, 0]``: how far they lie from it."""
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
        good = is_finite(e)
        total += tl.sum(tl.where(good, e, 0).to(tl.float64), axis=0)
        count += tl.sum(good.to(tl.float64), axis=0)
    p = (total / tl.maximum(count, 1.0)).to(WIDE)
    tl.store(pivot + g * Dp + d, p)
    # not zero, so that the exponent stays moderate where code vectors coincide
    far = tl.abs(p).to(tl.float32) * 2.0**-14
    for k0 in range(0, samples, BK):
        k = (k0 + tl.arange(0, BK)).to(tl.int64)
        inside = (k < samples)[:, None] & (d < D)[None, :]
        e = tl.load(
            codebook + g * sg + k[:, None] * (step * sk) + d[None, :] * sd, mask=inside, other=float("nan")
        )
        away = tl.abs(e.to(tl.float64) - p[None, :].to(tl.float64))
        far = tl.maximum(far, tl.max(tl.where(is_finite(e), away, 0), axis=0).to(tl.float32))
    tl.atomic_max(stats + g * 4, tl.max(bits_of(far), axis=0))


@triton.jit
def _pack(
    codebook, sg, sk, sd, pivot, stats, hi, lo, half, K, Kp, D, Dp, BK: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Scaled code vectors e^ as fp16 ``hi``, ``lo`` (G, Kp, Dp); ``half`` (G, Kp): |e^|^2 / 2; E, R1, R2."""
    g = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0).to(tl.int64) * BK + tl.arange(0, BK)
    scale = power(-exponent(tl.load(stats + g * 4).to(tl.float32, bitcast=True))).to(tl.float64)
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
    tl.store(half + g * Kp + k, tl.where(good, tl.minimum(square * 0.5, FAR * 0.5).to(tl.float32), FAR))
    tl.atomic_max(
        stats + g * 4 + 1, tl.max(bits_of(tl.sqrt(tl.where(good, square, 0).to(tl.float32))), axis=0)
    )
    tl.atomic_max(stats + g * 4 + 2, tl.max(bits_of(tl.sqrt(tl.where(good, r1, 0))), axis=0))
    tl.atomic_max(stats + g * 4 + 3, tl.max(bits_of(tl.sqrt(tl.where(good, r2, 0))), axis=0))
