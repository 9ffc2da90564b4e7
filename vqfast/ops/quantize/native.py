"""The training step on CPUs: that of a residual quantiser with one stage, ``residual/native.py``."""

from __future__ import annotations

from torch import Tensor

from vqfast.ops.quantize import reference
from vqfast.ops.residual import native


def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.quantize``."""
    if z_e.numel() == 0:
        return reference.quantize(z_e, codebook, channel_dim, statistics)
    out = native.residual_quantize(z_e, codebook[None], channel_dim, statistics)
    quantized, indices, codebook_losses, commitment_losses, counts, sums = out
    return quantized, indices.squeeze(-1), codebook_losses[0], commitment_losses[0], counts[0], sums[0]


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
    losses = grad_codebook_loss.view(1), grad_commitment_loss.view(1)
    indices = indices.unsqueeze(-1)
    grad_z_e, grad_codebooks = native.residual_backward(
        grad_quantized, *losses, z_e, codebook[None], indices, channel_dim
    )
    return grad_z_e, grad_codebooks[0]
