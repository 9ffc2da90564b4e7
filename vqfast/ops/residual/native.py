"""Residual quantisation on CPUs: a block of vectors goes through all stages before the next one is read.

The search keeps a block's residuals in L2; what follows, forward and backward, keeps a vector's in L1. In
float32; float64 goes stage by stage.

FLOORS (one core, 450 GFLOP/s in bfloat16), N, Q, K, D = 12000, 8, 1024, 128: the search multiplies 25 GFLOP,
56 ms, and reads 6 MB. Measured: search 69 ms; outputs and statistics 6, backward 5, both for the codes that
they gather, 8 x 6 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops.quantize.native import dense, quantize, quantize_backward
from vqfast.ops.quantize.reference import accumulator
from vqfast.ops.residual import reference


def _dense(x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """``x`` in float32 and in a dense layout, and that as ``(outer, D, inner)``."""
    x = x.float()
    if (found := dense(x, channel_dim)) is None:
        x = x.contiguous()
        found = dense(x, channel_dim)
    return x, found


def _books(codebooks: Tensor) -> Tensor:
    """In float32, each contiguous; one for all stages stays one."""
    codebooks = codebooks.float()
    return codebooks if codebooks[0].is_contiguous() else codebooks.contiguous()


def _as(z: Tensor, laid_out: Tensor, values: Tensor) -> Tensor:
    """``values``, in the memory layout of ``laid_out``, as ``z``."""
    values = values.as_strided(laid_out.shape, laid_out.stride())
    if values.dtype == z.dtype and values.stride() == torch.empty_like(z).stride():
        return values
    return torch.empty_like(z, requires_grad=False).copy_(values)


def residual_quantize(
    z: Tensor, codebooks: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.residual_quantize``."""
    if z.numel() == 0 or accumulator(z, codebooks) != torch.float32:
        return reference.residual_quantize(z, codebooks, channel_dim, statistics, quantize)
    laid_out, vectors = _dense(z, channel_dim)
    books = _books(codebooks)
    indices = torch.ops.vqfast_native.residual_search(vectors, books)
    quantized, errors, counts, sums = torch.ops.vqfast_native.follow(vectors, books, indices, statistics)
    losses = (errors[0] / z.numel()).float()
    indices = indices.view(*z.movedim(channel_dim, -1).shape[:-1], len(codebooks))
    return _as(z, laid_out, quantized), indices, losses, losses.clone(), counts[0].clone(), sums[0].clone()


def residual_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """As ``reference.residual_backward``."""
    losses = grad_codebook_losses, grad_commitment_losses
    if z.numel() == 0 or accumulator(z, codebooks) != torch.float32:
        args = grad_quantized, *losses, z, codebooks, indices, channel_dim
        return reference.residual_backward(*args, quantize_backward)
    laid_out, vectors = _dense(z, channel_dim)
    grad = grad_quantized.float()
    if grad.stride() != laid_out.stride():
        grad = torch.empty_strided(laid_out.shape, laid_out.stride()).copy_(grad)
    to_codebooks, to_vectors = (loss * (2 / z.numel()) for loss in losses)
    wanted = bool(to_codebooks.any())
    grad_z, away = torch.ops.vqfast_native.follow_backward(
        dense(grad, channel_dim), vectors, _books(codebooks), indices.contiguous(), to_vectors, wanted
    )
    grad_codebooks = torch.zeros_like(codebooks, memory_format=torch.contiguous_format)
    if wanted:
        grad_codebooks = (away[0] * -to_codebooks.view(-1, 1, 1)).to(codebooks.dtype)
    return _as(z, laid_out, grad_z), grad_codebooks
