"""Residual quantisation, stage by stage: the definition (Zeghidour et al. 2021, SoundStream, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.ops import dims
from vqfast.ops.nearest.reference import nearest
from vqfast.ops.quantize import reference
from vqfast.ops.quantize.reference import accumulator, straight_through


def residual_quantize(
    z: Tensor,
    codebooks: Tensor,
    channel_dim: int,
    statistics: bool,
    stage: Callable = reference.quantize,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``op.py``; ``stage`` quantises what the stages before it left over."""
    residual, outputs = z.to(accumulator(z, codebooks)), []
    total = torch.zeros_like(residual, requires_grad=False)
    for codebook in codebooks:
        quantized, *output = stage(residual, codebook, channel_dim, statistics)
        quantized = quantized.detach()  # a stage's losses have no gradient to the codes before it
        residual, total = residual - quantized, total + quantized
        outputs.append(output)
    indices, *others = zip(*outputs, strict=True)
    codebook_losses, commitment_losses, counts, sums = map(torch.stack, others)
    quantized, codes = straight_through(z, total), torch.stack(indices, -1)
    return quantized, codes, codebook_losses, commitment_losses, counts, sums


def residual_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
    stage: Callable = reference.quantize_backward,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z`` (straight-through plus every stage's commitment) and to ``codebooks``."""
    residual = z.to(accumulator(z, codebooks))
    grad, grad_codebooks = grad_quantized.to(residual.dtype), []
    losses = zip(grad_codebook_losses, grad_commitment_losses, strict=True)
    for codebook, index, loss in zip(codebooks, indices.unbind(-1), losses, strict=True):
        grad, grad_codebook = stage(grad, *loss, residual, codebook, index, channel_dim)
        residual = residual - codebook[index].detach().movedim(-1, channel_dim)
        grad_codebooks.append(grad_codebook)
    grad_z = torch.zeros_like(z, requires_grad=False) + grad.to(z.dtype)  # zeros have the caller's layout
    return grad_z, torch.stack(grad_codebooks)


def _searched(search: Callable, rows: Tensor, codebook: Tensor) -> Tensor:
    """Of ``rows (..., D)``."""
    return search(rows.reshape(-1, rows.shape[-1]), codebook).view(rows.shape[:-1])


def residual_codes(
    z: Tensor, codebooks: list[Tensor], channel_dim: int, search: Callable = nearest
) -> Tensor:
    """See ``op.py``; ``search`` finds a stage's codes."""
    residual, indices = dims.move(z, channel_dim, -1).to(accumulator(z, codebooks[0])), []
    for codebook in codebooks:
        indices.append(_searched(search, residual, codebook))
        residual = residual - codebook[indices[-1]]
    return torch.stack(indices, -1)


def projected_codes(
    z: Tensor,
    codebooks: list[Tensor],
    maps: list[Tensor],
    unit: bool,
    details: bool,
    search: Callable = nearest,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.py``; ``search`` finds a stage's codes."""
    residual, indices, latents = z.transpose(1, 2), [], []
    total = torch.zeros_like(residual)
    for q, codebook in enumerate(codebooks):
        weight_in, bias_in, weight_out, bias_out = maps[4 * q : 4 * q + 4]
        given = F.linear(residual, weight_in, bias_in)
        compared = (F.normalize(given, dim=-1), F.normalize(codebook)) if unit else (given, codebook)
        indices.append(_searched(search, *compared))
        back = F.linear(codebook[indices[-1]], weight_out, bias_out)
        residual, total = residual - back, total + back
        latents.append(given)
    shown = slice(None) if details else slice(0)
    given, total = (each[shown].transpose(1, 2).contiguous() for each in (torch.cat(latents, -1), total))
    return torch.stack(indices, -1), given, total
