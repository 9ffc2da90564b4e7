"""What rounding can do to a score of ``triton_kernels.py``: the bound, and the numbers that it is made of.

For one vector write x and e_k for the exact inputs, p for the pivot (distances don't depend on it, so that
any vector serves; it is the rounded mean of some code vectors), and in units of powers of two, which don't
round, ``x^ = (x - p) / 2^a`` (a: exponent of the vector's largest channel) and ``e^_k = (e_k - p) / 2^c`` (c:
of the code vectors'). Minimising ||x - e_k||^2 is minimising ``s_k = t |e^_k|^2 / 2 - x^.e^_k``, ``t = 2^(c -
a)``. Let u = 2^-24, X = |x^|, E = max |e^_k|, S = X E + t E^2 / 2, which bounds |s_k|. What is computed
differs by:

1. ``x - p`` is rounded once, relative u in each channel; code vectors likewise: 2 u X E by Cauchy and Schwarz
   (gradual underflow adds 2^-126 a channel: under the 2^-50 that every norm below is raised by).
2. fp16: x~ = hi + r1 = hi + lo + r2, both differences exact in float32, so that r1 and r2 (and for the code
   vectors R1 = max |r1|, R2 = max |r2|) are *measured*, whatever fp16 did: rounding, subnormals,
   saturation.
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
5. The smallest score of four codes, a *group*, gets the number of its tile into its low bits: 2 TILES u
   |score|, taken at the scores of the two groups that are compared.
6. Among the codes of one group or two, squared distances are summed from differences in float32 (float64 for
   float64 inputs): a difference is rounded once, a square once more, and all terms are positive, so that
   each distance is off by at most (D + 4) u, relative, and where squares underflow by D 2^-126. The nearest
   is certain if the next one exceeds it by the factor 1 + (4 D + 32) u, and D 2^-125; it may not be near
   overflow.

Together: ``err = 1.01 (point 2 + (2 n + blocks + 16) u' S + 2^-60 (E + E^2))`` with u' = 2^-23; 1.01 covers
the rounding of the bound itself and of the norms (relative (D + 2) u). If the second best group's score
exceeds the best's by more than 2 err (and point 5), no code of another group is nearer, and point 6 chooses
among four; if only the third best's does, among eight. Else, and where point 6 can't choose, the true
best's score is at most ``best + err``, so in the second look its computed score is at most that + its own
err, and at most its running best + 2 err: every code that could be nearest, or tie, gets its distance by
differences in float64, in increasing order, and only a smaller one replaces it: the lowest index wins. A
comparison with NaN or infinity (overflow anywhere above) fails on the side of more float64. It may be slow,
not wrong. fp16 subnormals must count in the product: NVIDIA's and gfx942's do; gfx90a flushes them, and is
refused (``vqfast/ops/registry.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

MEASURE = tl.constexpr(64)  # channels that a wider vector is measured by at a time, to spare registers


@triton.jit
def exponent(m):
    """``floor(log2 m)`` of a float32 that isn't negative, within -126..126."""
    return tl.minimum(tl.maximum((m.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)


@triton.jit
def power(e):
    """``2 ** e`` in float32, for an int32 ``e`` in -126..127."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def vector_offsets(n, b, c, sa, sb, sc, DIMS: tl.constexpr):
    """Where vector ``n`` (int64) of an (a, b, c) grid begins; only the last ``DIMS`` coordinates count."""
    if DIMS == 1:
        offsets = n * sc
    elif DIMS == 2:
        offsets = (n // c) * sb + (n % c) * sc
    else:
        offsets = (n // c // b) * sa + (n // c % b) * sb + (n % c) * sc
    return offsets


@triton.jit
def centred_block(x, at, valid, d, sd, pivot, D, WIDE: tl.constexpr):
    """A block of ``x - p`` (BM, BD), 0 where x isn't finite, and whether each vector is finite in it."""
    values = tl.load(x + at[:, None] + (d * sd)[None, :], mask=valid[:, None] & (d < D)[None, :], other=0)
    values = values.to(WIDE)
    p = tl.load(pivot + d)  # zero beyond D
    finite = is_finite(values)
    return tl.where(finite, values - p[None, :], 0), tl.min(finite.to(tl.int32), axis=1) == 1


@triton.jit
def split_halves(centred, scale):
    """``x^ = hi + lo + rest``: (hi, lo, |x^|^2, |x^ - hi|^2, |rest|^2)."""
    x = (centred * scale[:, None].to(centred.dtype)).to(tl.float32)
    hi = x.to(tl.float16)
    rest = x - hi.to(tl.float32)
    lo = rest.to(tl.float16)
    left = rest - lo.to(tl.float32)
    return hi, lo, tl.sum(x * x, axis=1), tl.sum(rest * rest, axis=1), tl.sum(left * left, axis=1)


@triton.jit
def vector_exponent(far, code_exponent):
    """The vector's exponent a, and t = 2^(c - a); see the bound, point 4."""
    a = tl.maximum(exponent(far), code_exponent - 20)
    return a, power(tl.maximum(code_exponent - a, -60))


@triton.jit
def measure(x, at, valid, sd, pivot, D, code_exponent, WIDE: tl.constexpr, BD: tl.constexpr):
    """(2^-a, t, finite, |x^|^2, |r1|^2, |r2|^2) of a block of vectors, read twice."""
    d = tl.arange(0, BD).to(tl.int64)
    far = tl.zeros(at.shape, tl.float32)
    finite = tl.full(at.shape, True, tl.int1)
    for d0 in range(0, D, BD):
        centred, good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
        far = tl.maximum(far, tl.max(tl.abs(centred), axis=1).to(tl.float32))
        finite = finite & good
    a, t = vector_exponent(far, code_exponent)
    scale = power(-a)
    x2 = tl.zeros(at.shape, tl.float32)
    r1 = tl.zeros(at.shape, tl.float32)
    r2 = tl.zeros(at.shape, tl.float32)
    for d0 in range(0, D, BD):
        centred, good = centred_block(x, at, valid, d0 + d, sd, pivot, D, WIDE)
        _hi, _lo, x2_, r1_, r2_ = split_halves(centred, scale)
        x2 += x2_
        r1 += r1_
        r2 += r2_
    return scale, t, finite, x2, r1, r2


@triton.jit
def error_bound(t, x2, r1, r2, e, e1, e2, n, SPLITS: tl.constexpr):
    """err of the bound; ``e``, ``e1`` and ``e2`` as measured; ``n`` counts products, additions and blocks."""
    tiny = 2.0**-50
    e = 1.001 * e + tiny
    e1 += tiny
    e2 += tiny
    norm = tl.sqrt(x2) + tiny
    r1 = tl.sqrt(r1) + tiny
    r2 = tl.sqrt(r2) + tiny
    if SPLITS == 1:  # noqa: SIM108
        split = r1 * e + (norm + r1) * e1
    else:
        split = r2 * e + (norm + r1) * e2 + 2 * r1 * e1
    size = norm * e + t * (0.5 * e * e)
    return 1.01 * (split + size * (n * 2.0**-23) + (e + e * e) * 2.0**-60)
