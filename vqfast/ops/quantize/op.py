"""``vqfast::quantize``: indices, straight-through output, losses and, on request, EMA statistics.

``z_e (B, D, *spatial)`` with its channels at ``channel_dim``, ``codebook (K, D)`` ->
``quantized`` (as ``z_e``), ``indices`` int64 ``(B, *spatial)``, ``codebook_loss`` and ``commitment_loss``
(scalars of one value, whose gradients go to the codebook and to ``z_e``), and with ``statistics`` the
``counts`` int64 ``(K,)`` and ``sums`` ``(K, D)`` of the vectors of each code (else of length 0).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.autograd import differentiate_through
from vqfast.ops.define import define, register_autograd
from vqfast.ops.nearest.op import nearest
from vqfast.ops.quantize import reference


@define
def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the module."""
    return registry.backend("quantize", z_e, codebook.shape[1]).quantize(
        z_e, codebook, channel_dim, statistics
    )


@torch.library.register_fake(quantize)
def _(z_e, codebook, channel_dim, statistics):
    dtype = reference.accumulator(z_e, codebook)
    dims = list(z_e.shape)
    dims.pop(channel_dim)
    codes = len(codebook) if statistics else 0
    loss = z_e.new_empty((), dtype=dtype)
    indices = z_e.new_empty(dims, dtype=torch.int64)
    counts = indices.new_empty(codes)
    sums = loss.new_empty(codes, codebook.shape[1])
    return torch.empty_like(z_e), indices, loss, loss.clone(), counts, sums


@define
def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z_e: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z_e`` and to ``codebook``."""
    run = registry.backend("quantize", z_e, codebook.shape[1]).quantize_backward
    return run(grad_quantized, grad_codebook_loss, grad_commitment_loss, z_e, codebook, indices, channel_dim)


@torch.library.register_fake(quantize_backward)
def _(grad_quantized, grad_codebook_loss, grad_commitment_loss, z_e, codebook, indices, channel_dim):
    return torch.empty_like(z_e), torch.empty_like(codebook)


def _setup_context(ctx, inputs, output):
    z_e, codebook, ctx.channel_dim, _ = inputs
    _, indices, _, _, counts, sums = output
    ctx.mark_non_differentiable(indices, counts, sums)
    ctx.save_for_backward(z_e, codebook, indices)


def _backward(ctx, grad_quantized, _indices, grad_codebook_loss, grad_commitment_loss, _counts, _sums):
    grads = quantize_backward(
        grad_quantized, grad_codebook_loss, grad_commitment_loss, *ctx.saved_tensors, ctx.channel_dim
    )
    return *grads, None, None


register_autograd(quantize, _backward, _setup_context, partial(reference.quantize, search=nearest))
differentiate_through(quantize_backward, reference.quantize_backward)
