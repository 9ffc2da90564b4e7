"""The quantiser's training step on a GPU.

Forward is the search of ``nearest/triton.py``, whose kernels also write the codes in the caller's layout
and each row's squared error; their sum is torch's, so that the loss is the same in every run. Counts are
integers, so that atomics can't change them. Sums of floats go by atomics, or, under
``torch.use_deterministic_algorithms``, code by code over the rows in order. Backward is one pass.

FLOORS (H100, 3.0 TB/s), N, K, D = 131072, 512, 64 in float32: forward 68 MB, 23 us (the search: see there);
statistics read z_e again, 34 MB, 11 us when it has left the L2; backward reads two tensors and writes one,
101 MB, 34 us. N, K, D = 131072, 8192, 256: forward 270 MB, 90 us, under the search's 690; backward 400 MB,
134 us. Predicted: statistics 20 and 60 us, backward 45 and 180, with 8 M and 34 M float atomics beside it;
the deterministic way costs a sort, about 100 us, more."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqfast.ops.launch import on
from vqfast.ops.nearest.triton import channel_block, nearest, search, wide
from vqfast.ops.nearest.triton_kernels import row_offsets
from vqfast.ops.residual import reference
from vqfast.ops.rows import row_strides, walkable

ROWS, CHANNELS = 64, 64  # block sizes of the kernels below: bound by memory, anything of this size does


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
        at = row_offsets(n, b, c, sa, sb, sc, 3)
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
    """``sums[k]``: of the code's vectors, or of ``grad * factor * (e_k - x)``, in the rows' order."""
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
        at = row_offsets(n, b, c, sa, sb, sc, 3)
        inside = valid[:, None] & (d < D)[None, :]
        value = tl.load(x + at[:, None] + (d * sd)[None, :], mask=inside, other=0).to(ACC)
        if DIFFERENCE:
            value = tl.where(inside, slope * (e[None, :] - value), 0)
        total += value
    tl.store(sums + k * D + d, tl.sum(total, axis=0), mask=d < D)


@triton.jit
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
    at = row_offsets(n, b, c, sa, sb, sc, 3)
    grad_at = row_offsets(n, b, c, ga, gb, gc, 3)
    out_at = row_offsets(n, b, c, oa, ob, oc, 3)
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


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``(*rows, D)`` tensors that the kernels can walk: themselves, or copies if strides are many."""
    return tensors if walkable(*tensors) else tuple(tensor.contiguous() for tensor in tensors)


def _blocks(channels: int) -> dict[str, int]:
    return {"BM": ROWS, "BD": channel_block(channels, CHANNELS)}


def _by_code(
    rows: Tensor, codebook: Tensor, indices: Tensor, counts: Tensor, sums: Tensor, grad, factor
) -> None:
    """Fills ``sums (K, D)`` without atomics; ``grad=None``: with the rows' sums."""
    order = indices.flatten().argsort(stable=True)
    sizes, (strides,) = row_strides(rows)
    blocks = _blocks(rows.shape[-1])
    difference = grad is not None
    with on(rows):
        _segments[len(codebook), triton.cdiv(rows.shape[-1], blocks["BD"])](
            rows, *strides, rows.stride(-1), *sizes[1:], codebook, *codebook.stride(), order,
            counts.cumsum(0), sums, grad if difference else sums, factor, rows.shape[-1],
            DIFFERENCE=difference, **blocks,
        )  # fmt: skip


def _statistics(rows: Tensor, indices: Tensor, counts: Tensor, sums: Tensor, with_sums: bool) -> None:
    """Adds to ``counts (K,)`` and, by atomics, to ``sums (K, D)``."""
    sizes, (strides,) = row_strides(rows)
    with on(rows):
        _count[(triton.cdiv(indices.numel(), ROWS),)](
            rows, *strides, rows.stride(-1), indices.numel(), *sizes[1:], indices, counts, sums,
            rows.shape[-1], SUMS=with_sums, **_blocks(rows.shape[-1]),
        )  # fmt: skip


def quantize_stage(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(quantized, indices, codebook_loss, commitment_loss, counts, sums)``, see ``op.py``."""
    rows = z_e.movedim(channel_dim, -1)
    quantized = torch.empty_like(z_e, requires_grad=False)  # the caller's layout
    target = quantized.movedim(channel_dim, -1)
    rows, written = _readable(rows, target)
    dtype = wide(z_e, codebook)
    indices = z_e.new_empty(rows.shape[:-1], dtype=torch.int64)
    errors = z_e.new_empty(indices.numel(), dtype=dtype)
    search(rows[None], codebook[None], indices.view(1, -1), written[None], errors)
    if written is not target:
        target.copy_(written)
    loss = (errors.sum(dtype=torch.float64) / z_e.numel() if errors.numel() else errors.sum() / 0).to(dtype)
    codes = len(codebook) if statistics else 0
    counts = indices.new_zeros(codes)
    sums = errors.new_zeros(codes, codebook.shape[1])
    if statistics and indices.numel():
        atomic = not torch.are_deterministic_algorithms_enabled()
        _statistics(rows, indices, counts, sums, with_sums=atomic)
        if not atomic:
            _by_code(rows, codebook, indices, counts, sums, None, 0.0)
    return quantized, indices, loss, loss.clone(), counts, sums


def backward_stage(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z_e: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z_e`` (straight-through plus commitment) and to ``codebook``; see ``reference.py``."""
    out = torch.empty_like(z_e, requires_grad=False)  # the caller's layout
    target = out.movedim(channel_dim, -1)
    rows, grads, written = _readable(
        z_e.movedim(channel_dim, -1), grad_quantized.movedim(channel_dim, -1), target
    )
    indices = indices.contiguous()
    sums = z_e.new_zeros(codebook.shape, dtype=wide(z_e, codebook))
    if indices.numel():
        sizes, (strides, grad_strides, out_strides) = row_strides(rows, grads, written)
        atomic = not torch.are_deterministic_algorithms_enabled()
        factor = 2 / z_e.numel()
        with on(z_e):
            _backward[(triton.cdiv(indices.numel(), ROWS),)](
                rows, *strides, rows.stride(-1), indices.numel(), *sizes[1:], codebook, *codebook.stride(),
                indices, grads, *grad_strides, grads.stride(-1), written, *out_strides, written.stride(-1),
                grad_codebook_loss, grad_commitment_loss, factor, sums, rows.shape[-1],
                ATOMIC=atomic, **_blocks(rows.shape[-1]),
            )  # fmt: skip
        if not atomic:
            counts = indices.new_zeros(len(codebook))
            (alone,) = _readable(rows)
            _statistics(alone, indices, counts, sums, with_sums=False)
            _by_code(alone, codebook, indices, counts, sums, grad_codebook_loss, factor)
    if written is not target:
        target.copy_(written)
    return out, sums.to(codebook.dtype)


quantize = partial(reference.quantize, stage=quantize_stage)
quantize_backward = partial(reference.quantize_backward, stage=backward_stage)
residual_codes = partial(reference.residual_codes, search=nearest)
projected_codes = partial(reference.projected_codes, search=nearest)
