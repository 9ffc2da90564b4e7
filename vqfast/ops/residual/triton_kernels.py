"""The kernels of ``triton.py`` beside the search: statistics, and the backward pass."""

from __future__ import annotations

import triton
import triton.language as tl

from vqfast.ops.nearest.triton_bound import vector_offsets


@triton.jit
def _count(
    x, sa, sb, sc, sd, N, b, c, indices, counts, sums, D,
    SUMS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``counts (K,)`` of the codes and, by atomics, ``sums (K, D)`` of their vectors."""
    n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    k = tl.load(indices + n, mask=valid, other=0)
    tl.atomic_add(counts + k, tl.full([BM], 1, tl.int64), mask=valid, sem="relaxed")
    if SUMS:
        at = vector_offsets(n, b, c, sa, sb, sc, 3)
        for d0 in range(0, D, BD):
            d = (d0 + tl.arange(0, BD)).to(tl.int64)
            inside = valid[:, None] & (d < D)[None, :]
            value = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0).to(
                sums.dtype.element_ty
            )
            tl.atomic_add(sums + k[:, None] * D + d[None, :], value, mask=inside, sem="relaxed")


@triton.jit
def _segments(
    x, sa, sb, sc, sd, b, c, codebook, ek, ed, order, ends, sums, grad, factor, D,
    DIFFERENCE: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``sums[k]`` of the code's vectors, or of ``grad * factor * (e_k - x)``, added in the vectors' order."""
    k = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)
    ACC: tl.constexpr = sums.dtype.element_ty
    begin = tl.load(ends + k - 1, mask=k > 0, other=0)
    end = tl.load(ends + k)
    total = tl.zeros([BM, BD], ACC)
    if DIFFERENCE:
        e = tl.load(codebook + k * ek + d * ed, mask=d < D, other=0).to(ACC)
        slope = tl.load(grad).to(ACC) * factor
    for start in range(begin, end, BM):
        slot = start + tl.arange(0, BM)
        valid = slot < end
        n = tl.load(order + slot, mask=valid, other=0)
        at = vector_offsets(n, b, c, sa, sb, sc, 3)
        inside = valid[:, None] & (d < D)[None, :]
        value = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0).to(ACC)
        if DIFFERENCE:
            value = tl.where(inside, slope * (e[None, :] - value), 0)
        total += value
    tl.store(sums + k * D + d, tl.sum(total, axis=0), mask=d < D)


@triton.jit(do_not_specialize_on_alignment=["grad_codebook_loss", "grad_commitment_loss"])
def _backward(
    x, sa, sb, sc, sd, N, b, c, codebook, ek, ed, indices,
    grad, ga, gb, gc, gd, out, oa, ob, oc, od, grad_codebook_loss, grad_commitment_loss, factor, sums, D,
    ATOMIC: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``out = grad + commitment * slope``; ``sums[k] -= codebook * slope``, ``slope = 2 (x - e) / numel``."""
    ACC: tl.constexpr = sums.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    valid = n < N
    k = tl.load(indices + n, mask=valid, other=0)
    at = vector_offsets(n, b, c, sa, sb, sc, 3)
    grad_at = vector_offsets(n, b, c, ga, gb, gc, 3)
    out_at = vector_offsets(n, b, c, oa, ob, oc, 3)
    to_code = tl.load(grad_codebook_loss).to(ACC)
    to_row = tl.load(grad_commitment_loss).to(ACC)
    for d0 in range(0, D, BD):
        d = (d0 + tl.arange(0, BD)).to(tl.int64)
        inside = valid[:, None] & (d < D)[None, :]
        slope = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0).to(ACC)
        slope -= tl.load(codebook + (k * ek)[:, None] + (d * ed)[None, :], mask=inside, other=0).to(ACC)
        slope *= factor
        straight = tl.load(grad + grad_at[:, None] + (d * gd)[None, :], mask=inside, other=0).to(ACC)
        tl.store(out + out_at[:, None] + (d * od)[None, :], straight + to_row * slope, mask=inside)
        if ATOMIC:
            tl.atomic_add(sums + k[:, None] * D + d[None, :], -to_code * slope, mask=inside, sem="relaxed")
