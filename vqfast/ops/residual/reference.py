"""Residual quantisation, stage by stage: the definition (Zeghidour et al. 2021, SoundStream, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqfast.ops.quantize import reference
from vqfast.ops.quantize.reference import accumulator


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
        residual, total = residual - quantized, total + quantized
        outputs.append(output)
    indices, *others = zip(*outputs, strict=True)
    quantized = torch.empty_like(z, requires_grad=False).copy_(total)  # the caller's layout
    return quantized, torch.stack(indices, -1), *(torch.stack(values) for values in others)


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
        residual = residual - codebook[index].movedim(-1, channel_dim)
        grad_codebooks.append(grad_codebook)
    grad_z = torch.empty_like(z, requires_grad=False).copy_(grad)  # the caller's layout
    return grad_z, torch.stack(grad_codebooks)
