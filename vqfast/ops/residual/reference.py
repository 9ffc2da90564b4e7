"""Quantisation in one or several stages: the definition.

Sources: van den Oord et al. 2017, section 3; Zeghidour et al. 2021 (SoundStream), algorithm 1, for the
stages.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.ops import dims
from vqfast.ops.nearest.reference import accumulator, nearest

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def straight_through(z: Tensor, values: Tensor) -> Tensor:
    """``values`` in the dtype and the memory layout of ``z``, with its tangent and its gradient."""
    return (z - z.detach()) + values.detach().to(z.dtype)


def quantize_stage(
    z: Tensor,
    codebook: Tensor,
    channel_dim: int,
    statistics: bool,
    search: Callable[[Tensor, Tensor], Tensor] = nearest,
) -> Step:
    """One stage: ``(quantized, indices, codebook_loss, commitment_loss, counts, sums)``, see ``op.py``.

    Differentiated, it has the gradients and the tangents of the op; ``search`` finds the codes.
    """
    z_last = dims.move(z, channel_dim, -1)  # (B, *spatial, D)
    indices = _search(search, z_last.detach(), codebook.detach())
    dtype = accumulator(z, codebook)
    finite = z_last.isfinite().all(-1, keepdim=True)
    z_q = torch.where(finite, codebook.to(dtype)[indices], torch.nan)
    z_last = z_last.to(dtype)
    vectors = z_last.detach()
    codebook_loss = (vectors - z_q).square().mean()
    commitment_loss = (z_last - z_q.detach()).square().mean()
    flat, codes = indices.flatten(), len(codebook) if statistics else 0
    counts = indices.new_zeros(codes)
    sums = z_q.new_zeros(codes, codebook.shape[1])
    if statistics:
        counts = counts.index_add(0, flat, torch.ones_like(flat))
        sums = sums.index_add(0, flat, vectors.reshape(-1, vectors.shape[-1]))
    quantized = straight_through(z, dims.move(z_q, -1, channel_dim))
    return quantized, indices, codebook_loss, commitment_loss, counts, sums


def quantize(
    z: Tensor,
    codebooks: Tensor,
    channel_dim: int,
    statistics: bool,
    stage: Callable[[Tensor, Tensor, int, bool], Step] = quantize_stage,
) -> Step:
    """See ``op.py``; ``stage`` quantises the residual of the stages before it."""
    if codebooks.ndim == 2:
        return stage(z, codebooks, channel_dim, statistics)
    residual, outputs = z.to(accumulator(z, codebooks)), []
    total = torch.zeros_like(residual, requires_grad=False)
    for codebook in codebooks:
        quantized, *output = stage(residual, codebook, channel_dim, statistics)
        quantized = quantized.detach()  # no loss has a gradient to the codebooks of earlier stages
        residual, total = residual - quantized, total + quantized
        outputs.append(output)
    indices, *others = zip(*outputs, strict=True)
    codebook_losses, commitment_losses, counts, sums = map(torch.stack, others)
    quantized, stacked = straight_through(z, total), torch.stack(indices, -1)
    return quantized, stacked, codebook_losses, commitment_losses, counts, sums


def backward_stage(
    grad_quantized: Tensor,
    grad_codebook_loss: Tensor,
    grad_commitment_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of one stage to ``z`` (straight-through plus commitment) and to ``codebook``.

    The codebook's is ``(2 / numel) * sum over the vectors assigned to k of (e_k - z)``. A tensor that a loss
    holds constant stays constant in the loss's gradient.
    """
    dtype, scale = accumulator(z, codebook), 2 / max(1, z.numel())
    z_last, z_q = z.movedim(channel_dim, -1).to(dtype), codebook.to(dtype)[indices]
    commitment = (grad_commitment_loss * scale * (z_last - z_q.detach())).movedim(-1, channel_dim)
    away = grad_codebook_loss * scale * (z_q - z_last.detach())
    # zeros have the caller's layout
    grad_z = torch.zeros_like(z, requires_grad=False) + (grad_quantized + commitment).to(z.dtype)
    grad_codebook = away.new_zeros(codebook.shape).index_add(
        0, indices.flatten(), away.reshape(-1, codebook.shape[1])
    )
    return grad_z, grad_codebook.to(codebook.dtype)


def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
    stage: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] = (
        backward_stage
    ),
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z`` (straight-through plus every stage's commitment) and to ``codebooks``."""
    losses = grad_codebook_losses, grad_commitment_losses
    if codebooks.ndim == 2:
        return stage(grad_quantized, *losses, z, codebooks, indices, channel_dim)
    residual = z.to(accumulator(z, codebooks))
    grad, grad_codebooks = grad_quantized.to(residual.dtype), []
    for codebook, index, *loss in zip(codebooks, indices.unbind(-1), *losses, strict=True):
        grad, grad_codebook = stage(grad, loss[0], loss[1], residual, codebook, index, channel_dim)
        residual = residual - codebook[index].detach().movedim(-1, channel_dim)
        grad_codebooks.append(grad_codebook)
    grad_z = torch.zeros_like(z, requires_grad=False) + grad.to(z.dtype)  # zeros have the caller's layout
    return grad_z, torch.stack(grad_codebooks)


def _search(search: Callable[[Tensor, Tensor], Tensor], vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices ``(...)`` of ``vectors (..., D)``."""
    return search(vectors.reshape(-1, vectors.shape[-1]), codebook).view(vectors.shape[:-1])


def residual_codes(
    z: Tensor,
    codebooks: list[Tensor],
    channel_dim: int,
    search: Callable[[Tensor, Tensor], Tensor] = nearest,
) -> Tensor:
    """See ``op.py``; ``search`` finds a stage's codes."""
    residual, indices = dims.move(z, channel_dim, -1).to(accumulator(z, codebooks[0])), []
    for codebook in codebooks:
        indices.append(_search(search, residual, codebook))
        residual = residual - codebook[indices[-1]]
    return torch.stack(indices, -1)


def projected_codes(
    z: Tensor,
    codebooks: list[Tensor],
    maps: list[Tensor],
    unit: bool,
    parts: bool,
    search: Callable[[Tensor, Tensor], Tensor] = nearest,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.py``; ``search`` finds a stage's codes."""
    residual, indices, latents = z.transpose(1, 2), [], []
    total = torch.zeros_like(residual)
    for q, codebook in enumerate(codebooks):
        weight_in, bias_in, weight_out, bias_out = maps[4 * q : 4 * q + 4]
        latent = F.linear(residual, weight_in, bias_in)
        compared = (F.normalize(latent, dim=-1), F.normalize(codebook)) if unit else (latent, codebook)
        indices.append(_search(search, *compared))
        back = F.linear(codebook[indices[-1]], weight_out, bias_out)
        residual, total = residual - back, total + back
        latents.append(latent)
    samples = slice(None) if parts else slice(0)
    joined, total = (each[samples].transpose(1, 2).contiguous() for each in (torch.cat(latents, -1), total))
    return torch.stack(indices, -1), joined, total
