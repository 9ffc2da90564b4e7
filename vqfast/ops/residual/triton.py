"""Quantisation on a GPU, in one stage or several.

Forward is the search of ``nearest/triton.py``, whose kernels also write the code vectors in the caller's
layout and each vector's squared distance. torch sums the distances, so that the loss is the same in every
run. Counts are integers, so that the order of atomics doesn't matter. Sums of floats go by atomics, or, under
``torch.use_deterministic_algorithms``, code by code over the vectors in order. Backward is one pass.

Several stages run one after the other: each reads and writes the residual once, 8 bytes a number, beside the
search. One pass for all stages is left for when a GPU can measure it.

FLOORS (H100, 3.0 TB/s), N, K, D = 131072, 512, 64 in float32: forward 68 MB, 23 us (the search: see there);
statistics read z again, 34 MB, 11 us when it has left the L2; backward reads two tensors and writes one,
101 MB, 34 us. N, K, D = 131072, 8192, 256: forward 270 MB, 90 us, under the search's 690; backward 400 MB,
134 us. Predicted: statistics 20 and 60 us, backward 45 and 180, with 8 M and 34 M float atomics beside it;
the deterministic way costs a sort, about 100 us, more.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vqfast.ops.launch import Kept, Launched, on, plan_key, remember
from vqfast.ops.nearest.reference import accumulator
from vqfast.ops.nearest.triton import channel_block, nearest, search
from vqfast.ops.residual import reference
from vqfast.ops.residual.triton_kernels import _backward, _count, _segments
from vqfast.ops.strides import vector_strides, walkable

VECTORS, CHANNELS = 64, 64  # blocks of kernels that memory limits: any size near these does


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The ``(..., D)`` tensors if they are walkable, else copies."""
    return tensors if walkable(*tensors) else tuple(tensor.contiguous() for tensor in tensors)


class _Plan(NamedTuple):
    """What a launch takes from shapes and strides.

    Attributes:
        rows, columns: of blocks; by vectors, and by channels.
        strides: of each tensor that is walked.
        sizes: the number of vectors, and the last sizes of their grid.
        kernel: with its constants.
    """

    rows: int
    columns: int
    strides: list[tuple[int, ...]]
    sizes: tuple[int, ...]
    kernel: Kept


_plans: dict[tuple[Any, ...], _Plan] = {}


def _plan(kernel: Any, walked: tuple[Tensor, ...], others: tuple[Tensor, ...], **options: bool) -> _Plan:
    """The plan of a kernel that walks the vectors of ``walked`` and is given ``others`` too."""
    key = plan_key((*options.items(),), *walked, *others)  # each kernel has an option of its own
    plan = _plans.get(key)
    if plan is None:
        sizes, strides = vector_strides(*walked)
        vectors, channels = walked[0].shape[:-1].numel(), walked[0].shape[-1]
        blocks = {"BM": VECTORS, "BD": channel_block(channels, CHANNELS)}
        plan = remember(_plans, key, _Plan(
            rows=triton.cdiv(vectors, VECTORS),
            columns=triton.cdiv(channels, blocks["BD"]),
            strides=[(*each, of.stride(-1)) for each, of in zip(strides, walked, strict=True)],
            sizes=(vectors, *sizes[1:]),
            kernel=Kept(kernel, {**options, **blocks}),
        ))  # fmt: skip
    return plan


def _by_code(
    vectors: Tensor,
    codebook: Tensor,
    indices: Tensor,
    counts: Tensor,
    sums: Tensor,
    grad: Tensor | None,
    factor: float,
) -> None:
    """Fills ``sums (K, D)`` without atomics: with the gradient for ``grad``, else with sums of vectors."""
    order, ends = indices.flatten().argsort(stable=True), counts.cumsum(0)
    given = sums if grad is None else grad
    plan = _plan(_segments, (vectors,), (codebook, order, ends, sums, given), DIFFERENCE=grad is not None)
    (of_vectors,), (_, *sizes) = plan.strides, plan.sizes
    with on(vectors):
        plan.kernel(
            len(codebook),
            (vectors, *of_vectors, *sizes, codebook, *codebook.stride(), order, ends, sums, given, factor,
             vectors.shape[-1]),
            plan.columns,
        )  # fmt: skip


def _statistics(vectors: Tensor, indices: Tensor, counts: Tensor, sums: Tensor, with_sums: bool) -> Launched:
    """The launch that adds to ``counts (K,)`` and, by atomics, to ``sums (K, D)``."""
    plan = _plan(_count, (vectors,), (indices, counts, sums), SUMS=with_sums)
    (of_vectors,) = plan.strides
    arguments = (vectors, *of_vectors, *plan.sizes, indices, counts, sums, vectors.shape[-1])
    return plan.kernel, plan.rows, arguments


def quantize_stage(
    z: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.quantize_stage``."""
    vectors = z.movedim(channel_dim, -1)
    quantized = torch.empty_like(z, requires_grad=False)  # the caller's layout
    target = quantized.movedim(channel_dim, -1)
    vectors, written = _readable(vectors, target)
    dtype = accumulator(z, codebook)
    indices = z.new_empty(vectors.shape[:-1], dtype=torch.int64)
    errors = z.new_empty(indices.numel(), dtype=dtype)
    codes = len(codebook) if statistics else 0
    counts = indices.new_zeros(codes)
    sums = errors.new_zeros(codes, codebook.shape[1])
    atomic = not torch.are_deterministic_algorithms_enabled()
    counting = None
    if statistics and indices.numel():
        counting = _statistics(vectors, indices, counts, sums, with_sums=atomic)
    search(vectors, codebook, indices, written, errors, counting)
    if written is not target:
        target.copy_(written)
    loss = (errors.sum(dtype=torch.float64) / z.numel() if errors.numel() else errors.sum() / 0).to(dtype)
    if counting is not None:
        kernel, blocks, arguments = counting
        with on(vectors):
            kernel(blocks, arguments)
        if not atomic:
            _by_code(vectors, codebook, indices, counts, sums, None, 0.0)
    return quantized, indices, loss, loss.clone(), counts, sums


def backward_stage(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """As ``reference.backward_stage``."""
    out = torch.empty_like(z, requires_grad=False)  # the caller's layout
    target = out.movedim(channel_dim, -1)
    vectors, grads, written = _readable(
        z.movedim(channel_dim, -1), grad_quantized.movedim(channel_dim, -1), target
    )
    indices = indices.contiguous()
    sums = z.new_zeros(codebook.shape, dtype=accumulator(z, codebook))
    if indices.numel():
        atomic = not torch.are_deterministic_algorithms_enabled()
        factor = 2 / z.numel()
        others = (codebook, indices, grad_codebook_loss, grad_commitment_loss, sums)
        plan = _plan(_backward, (vectors, grads, written), others, ATOMIC=atomic)
        of_vectors, of_grads, of_out = plan.strides
        with on(z):
            plan.kernel(
                plan.rows,
                (vectors, *of_vectors, *plan.sizes, codebook, *codebook.stride(), indices, grads, *of_grads,
                 written, *of_out, grad_codebook_loss, grad_commitment_loss, factor, sums, vectors.shape[-1]),
            )  # fmt: skip
        if not atomic:
            counts = indices.new_zeros(len(codebook))
            (alone,) = _readable(vectors)
            kernel, blocks, arguments = _statistics(alone, indices, counts, sums, with_sums=False)
            with on(z):
                kernel(blocks, arguments)
            _by_code(alone, codebook, indices, counts, sums, grad_codebook_loss, factor)
    if written is not target:
        target.copy_(written)
    return out, sums.to(codebook.dtype)


quantize = partial(reference.quantize, stage=quantize_stage)
quantize_backward = partial(reference.quantize_backward, stage=backward_stage)
residual_codes = partial(reference.residual_codes, search=nearest)
projected_codes = partial(reference.projected_codes, search=nearest)
