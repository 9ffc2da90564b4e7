"""The quantiser's training step: the definition (van den Oord et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqfast.ops import dims
from vqfast.ops.nearest.reference import nearest


def accumulator(z_e: Tensor, codebook: Tensor) -> torch.dtype:
    """The dtype of losses, sums and the codebook's gradient: float32 at the least."""
    return torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)


def straight_through(z: Tensor, values: Tensor) -> Tensor:
    """``values`` in the dtype and the memory layout of ``z``, with its tangent and its gradient."""
    return (z - z.detach()) + values.detach().to(z.dtype)


def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool, search: Callable = nearest
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(quantized, indices, codebook_loss, commitment_loss, counts, sums)``, see ``op.py``.

    Differentiated, it has the gradients and the tangents of the op; ``search`` finds the codes.
    """
    rows = dims.move(z_e, channel_dim, -1)  # (B, *spatial, D)
    indices = search(rows.detach().reshape(-1, rows.shape[-1]), codebook.detach()).view(rows.shape[:-1])
    dtype = accumulator(z_e, codebook)
    finite = rows.isfinite().all(-1, keepdim=True)
    z_q = torch.where(finite, codebook.to(dtype)[indices], torch.nan)
    rows = rows.to(dtype)
    vectors = rows.detach()
    codebook_loss = (vectors - z_q).square().mean()
    commitment_loss = (rows - z_q.detach()).square().mean()
    flat, codes = indices.flatten(), len(codebook) if statistics else 0
    counts = indices.new_zeros(codes)
    sums = z_q.new_zeros(codes, codebook.shape[1])
    if statistics:
        counts = counts.index_add(0, flat, torch.ones_like(flat))
        sums = sums.index_add(0, flat, vectors.reshape(-1, vectors.shape[-1]))
    quantized = straight_through(z_e, dims.move(z_q, -1, channel_dim))
    return quantized, indices, codebook_loss, commitment_loss, counts, sums


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

    The codebook's is ``(2 / numel) * sum over the vectors assigned to k of (e_k - z_e)``. What a loss holds
    constant stays so in its gradient.
    """
    dtype, scale = accumulator(z_e, codebook), 2 / max(1, z_e.numel())
    rows, codes = z_e.movedim(channel_dim, -1).to(dtype), codebook.to(dtype)[indices]
    commitment = (grad_commitment_loss * scale * (rows - codes.detach())).movedim(-1, channel_dim)
    away = grad_codebook_loss * scale * (codes - rows.detach())
    # zeros have the caller's layout
    grad_z_e = torch.zeros_like(z_e, requires_grad=False) + (grad_quantized + commitment).to(z_e.dtype)
    grad_codebook = torch.zeros_like(codebook, dtype=dtype).index_add(
        0, indices.flatten(), away.reshape(-1, codebook.shape[1])
    )
    return grad_z_e, grad_codebook.to(codebook.dtype)
