"""The training step on CPUs: ``csrc/nearest.cpp``, then ``csrc/quantize.cpp`` in one pass each way.

Float32 in a dense layout; what is otherwise follows the definition once its codes are found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.ops.nearest.native import nearest
from vqfast.ops.quantize import reference


def dense(x: Tensor, channel_dim: int) -> Tensor | None:
    """``x`` as ``(outer, D, inner)``, channels first or last; ``None`` where that takes a copy."""
    last = x.movedim(channel_dim, -1)
    if last.is_contiguous():
        return last.reshape(-1, last.shape[-1], 1)
    if not x.is_contiguous():
        return None
    axis = channel_dim % x.ndim
    return x.view(-1, x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _fits(z: Tensor | None, codebook: Tensor) -> bool:
    return z is not None and z.numel() > 0 and z.dtype == codebook.dtype == torch.float32


def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.quantize``."""
    indices = nearest(z_e.movedim(channel_dim, -1), codebook)
    z = dense(z_e, channel_dim)
    if not _fits(z, codebook):
        return reference.follow(z_e, codebook, indices, channel_dim, statistics)
    found = torch.ops.vqfast_native.follow(
        z, codebook.contiguous()[None], indices.unsqueeze(-1), statistics
    )  # one stage
    quantized, error, counts, sums = found
    loss = (error[0, 0] / z_e.numel()).to(z_e.dtype)
    # laid out as z_e, like the piece of memory that it was taken for
    quantized = quantized.as_strided(z_e.shape, z_e.stride())
    return quantized, indices, loss, loss.clone(), counts[0, 0].clone(), sums[0, 0].clone()


def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z_e: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """As ``reference.quantize_backward``."""
    z = dense(z_e, channel_dim)
    if not _fits(z, codebook) or grad_quantized.dtype != z_e.dtype:
        return reference.quantize_backward(
            grad_quantized, grad_codebook_loss, grad_commitment_loss, z_e, codebook, indices, channel_dim
        )
    if grad_quantized.stride() != z_e.stride():
        grad_quantized = torch.empty_like(z_e, requires_grad=False).copy_(grad_quantized)
    per_element = 2 / z_e.numel()
    wanted = grad_codebook_loss.item() != 0
    grad_z, residuals = torch.ops.vqfast_native.follow_backward(
        dense(grad_quantized, channel_dim),
        z,
        codebook.contiguous()[None],
        indices.contiguous().unsqueeze(-1),
        (grad_commitment_loss * per_element).view(1),
        wanted,
    )
    grad_codebook = (
        residuals[0, 0] * (-grad_codebook_loss * per_element) if wanted else torch.zeros_like(codebook)
    )
    return grad_z.as_strided(z_e.shape, z_e.stride()), grad_codebook
