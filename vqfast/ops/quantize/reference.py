"""The quantiser's training step: the definition (van den Oord et al. 2017, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops.nearest.reference import nearest


def accumulator(z_e: Tensor, codebook: Tensor) -> torch.dtype:
    """The dtype of losses, sums and the codebook's gradient: float32 at the least."""
    return torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)


def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(quantized, indices, codebook_loss, commitment_loss, counts, sums)``, see ``op.py``."""
    rows = z_e.movedim(channel_dim, -1)  # (B, *spatial, D)
    indices = nearest(rows.reshape(-1, rows.shape[-1]), codebook).view(rows.shape[:-1])
    return follow(z_e, codebook, indices, channel_dim, statistics)


def follow(
    z_e: Tensor, codebook: Tensor, indices: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``quantize`` once the indices are found."""
    rows = z_e.movedim(channel_dim, -1)
    dtype = accumulator(z_e, codebook)
    finite = rows.isfinite().all(-1, keepdim=True)
    z_q = torch.where(finite, codebook.to(dtype)[indices], torch.nan)
    loss = (rows.to(dtype) - z_q).square().mean()
    counts = indices.new_zeros(0)
    sums = z_q.new_zeros(0, codebook.shape[1])
    if statistics:
        counts = torch.bincount(indices.flatten(), minlength=len(codebook))
        sums = torch.zeros_like(codebook, dtype=dtype)
        sums.index_add_(0, indices.flatten(), rows.reshape(-1, rows.shape[-1]).to(dtype))
    quantized = torch.empty_like(z_e).copy_(z_q.movedim(-1, channel_dim))  # the caller's layout
    return quantized, indices, loss, loss.clone(), counts, sums


def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z_e: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z_e`` (straight-through plus commitment) and to ``codebook``.

    The codebook's is ``(2 / numel) * sum over the vectors assigned to k of (e_k - z_e)``.
    """
    rows = z_e.movedim(channel_dim, -1)
    dtype = accumulator(z_e, codebook)
    slope = (rows.to(dtype) - codebook.to(dtype)[indices]) * (2 / max(1, z_e.numel()))
    commitment = (grad_commitment_loss * slope).movedim(-1, channel_dim)
    grad_z_e = torch.empty_like(z_e, requires_grad=False)  # the caller's layout
    grad_z_e.copy_(grad_quantized + commitment)
    grad_codebook = torch.zeros_like(codebook, dtype=dtype).index_add(
        0, indices.flatten(), -grad_codebook_loss * slope.reshape(-1, codebook.shape[1])
    )
    return grad_z_e, grad_codebook.to(codebook.dtype)
