"""The quantiser's training step on a GPU.

Forward is the search of ``nearest/triton.py``, whose kernels also write the codes in the caller's layout
and each vector's squared error; their sum is torch's, so that the loss is the same in every run. Counts are
integers, so that atomics can't change them. Sums of floats go by atomics, or, under
``torch.use_deterministic_algorithms``, code by code over the vectors in order. Backward is one pass.

FLOORS (H100, 3.0 TB/s), N, K, D = 131072, 512, 64 in float32: forward 68 MB, 23 us (the search: see there);
statistics read z_e again, 34 MB, 11 us when it has left the L2; backward reads two tensors and writes one,
101 MB, 34 us. N, K, D = 131072, 8192, 256: forward 270 MB, 90 us, under the search's 690; backward 400 MB,
134 us. Predicted: statistics 20 and 60 us, backward 45 and 180, with 8 M and 34 M float atomics beside it;
the deterministic way costs a sort, about 100 us, more."""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import on
from vqfast.ops.nearest.triton import channel_block, nearest, search, wide
from vqfast.ops.residual import reference
from vqfast.ops.residual.triton_kernels import _backward, _count, _segments
from vqfast.ops.strides import vector_strides, walkable

VECTORS, CHANNELS = 64, 64  # block sizes of the kernels below: bound by memory, anything of this size does


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``(*vectors, D)`` tensors that the kernels can walk: themselves, or copies if strides are many."""
    return tensors if walkable(*tensors) else tuple(tensor.contiguous() for tensor in tensors)


def _blocks(channels: int) -> dict[str, int]:
    return {"BM": VECTORS, "BD": channel_block(channels, CHANNELS)}


def _by_code(
    vectors: Tensor,
    codebook: Tensor,
    indices: Tensor,
    counts: Tensor,
    sums: Tensor,
    grad: Tensor | None,
    factor: float,
) -> None:
    """Fills ``sums (K, D)`` without atomics; ``grad=None``: with the vectors' sums."""
    order = indices.flatten().argsort(stable=True)
    sizes, (strides,) = vector_strides(vectors)
    blocks = _blocks(vectors.shape[-1])
    difference = grad is not None
    with on(vectors):
        _segments[len(codebook), triton.cdiv(vectors.shape[-1], blocks["BD"])](
            vectors, *strides, vectors.stride(-1), *sizes[1:], codebook, *codebook.stride(), order,
            counts.cumsum(0), sums, grad if difference else sums, factor, vectors.shape[-1],
            DIFFERENCE=difference, **blocks,
        )  # fmt: skip


def _statistics(vectors: Tensor, indices: Tensor, counts: Tensor, sums: Tensor, with_sums: bool) -> None:
    """Adds to ``counts (K,)`` and, by atomics, to ``sums (K, D)``."""
    sizes, (strides,) = vector_strides(vectors)
    with on(vectors):
        _count[(triton.cdiv(indices.numel(), VECTORS),)](
            vectors, *strides, vectors.stride(-1), indices.numel(), *sizes[1:], indices, counts, sums,
            vectors.shape[-1], SUMS=with_sums, **_blocks(vectors.shape[-1]),
        )  # fmt: skip


def quantize_stage(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(quantized, indices, codebook_loss, commitment_loss, counts, sums)``, see ``op.py``."""
    vectors = z_e.movedim(channel_dim, -1)
    quantized = torch.empty_like(z_e, requires_grad=False)  # the caller's layout
    target = quantized.movedim(channel_dim, -1)
    vectors, written = _readable(vectors, target)
    dtype = wide(z_e, codebook)
    indices = z_e.new_empty(vectors.shape[:-1], dtype=torch.int64)
    errors = z_e.new_empty(indices.numel(), dtype=dtype)
    search(vectors[None], codebook[None], indices.view(1, -1), written[None], errors)
    if written is not target:
        target.copy_(written)
    loss = (errors.sum(dtype=torch.float64) / z_e.numel() if errors.numel() else errors.sum() / 0).to(dtype)
    codes = len(codebook) if statistics else 0
    counts = indices.new_zeros(codes)
    sums = errors.new_zeros(codes, codebook.shape[1])
    if statistics and indices.numel():
        atomic = not torch.are_deterministic_algorithms_enabled()
        _statistics(vectors, indices, counts, sums, with_sums=atomic)
        if not atomic:
            _by_code(vectors, codebook, indices, counts, sums, None, 0.0)
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
    vectors, grads, written = _readable(
        z_e.movedim(channel_dim, -1), grad_quantized.movedim(channel_dim, -1), target
    )
    indices = indices.contiguous()
    sums = z_e.new_zeros(codebook.shape, dtype=wide(z_e, codebook))
    if indices.numel():
        sizes, (strides, grad_strides, out_strides) = vector_strides(vectors, grads, written)
        atomic = not torch.are_deterministic_algorithms_enabled()
        factor = 2 / z_e.numel()
        with on(z_e):
            _backward[(triton.cdiv(indices.numel(), VECTORS),)](
                vectors, *strides, vectors.stride(-1), indices.numel(), *sizes[1:], codebook,
                *codebook.stride(), indices, grads, *grad_strides, grads.stride(-1), written, *out_strides,
                written.stride(-1), grad_codebook_loss, grad_commitment_loss, factor, sums, vectors.shape[-1],
                ATOMIC=atomic, **_blocks(vectors.shape[-1]),
            )  # fmt: skip
        if not atomic:
            counts = indices.new_zeros(len(codebook))
            (alone,) = _readable(vectors)
            _statistics(alone, indices, counts, sums, with_sums=False)
            _by_code(alone, codebook, indices, counts, sums, grad_codebook_loss, factor)
    if written is not target:
        target.copy_(written)
    return out, sums.to(codebook.dtype)


quantize = partial(reference.quantize, stage=quantize_stage)
quantize_backward = partial(reference.quantize_backward, stage=backward_stage)
residual_codes = partial(reference.residual_codes, search=nearest)
projected_codes = partial(reference.projected_codes, search=nearest)
