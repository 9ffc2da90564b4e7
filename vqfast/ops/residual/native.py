"""Residual quantisation on CPUs: ``csrc/residual/``, and ``csrc/nearest/`` for the search, block by block.

A block of vectors goes through all stages before the next one is read. The search keeps the residuals of the
block in L2; the passes after it, forward and backward, keep those of a vector in L1.

FLOORS, on one core of 450 GFLOP/s in bfloat16 (int8 is faster) that copies 37 GB/s:

- N, Q, K, D = 12000, 8, 1024, 128. The search takes 25 GFLOP, 56 ms, and reads 6 MB. Measured: search 54 ms,
  outputs 4, statistics 3 more; backward 3, with the codebook's gradient 5. These gather codes, 8 x 6 MB,
  which takes most of their time.
- N, Q, K, D = 32768, 1, 512, 64, channels first. Forward takes 2.1 GFLOP, 4.8 ms, and 17 MB, 0.5 ms; backward
  25 MB, 0.7 ms. Measured: forward 8.3 ms, of which the search is 7.1, statistics 0.1 more; backward 1.9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.ops.nearest.native import nearest
from vqfast.ops.nearest.reference import accumulator
from vqfast.ops.residual import reference


def _dense(x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """``x``, copied unless its layout is dense, and the same memory as ``(outer, D, inner)``."""
    last = x.movedim(channel_dim, -1)
    if last.is_contiguous():
        return x, last.reshape(-1, last.shape[-1], 1)
    x, axis = x.contiguous(), channel_dim % x.ndim
    return x, x.view(-1, x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _arguments(z: Tensor, codebooks: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``z`` in a dense layout, that as ``(outer, D, inner)``, and codebooks ``(Q, K, D)``, each contiguous.

    One codebook for all stages isn't copied for each. Codebooks are float32, or both are float64.
    """
    dtype = accumulator(z, codebooks)
    laid_out, vectors = _dense(z.double() if dtype == torch.float64 else z, channel_dim)
    books = (codebooks[None] if codebooks.ndim == 2 else codebooks).to(dtype)
    return laid_out, vectors, books if books[0].is_contiguous() else books.contiguous()


def _as(z: Tensor, laid_out: Tensor, values: Tensor) -> Tensor:
    """``values``, whose memory is laid out as ``laid_out``, with the shape, strides and dtype of ``z``."""
    values = values.as_strided(laid_out.shape, laid_out.stride())
    if laid_out is z:
        return values
    result = torch.empty_like(z, requires_grad=False)
    same = (values.dtype, values.stride()) == (result.dtype, result.stride())
    return values if same else result.copy_(values)


def quantize(
    z: Tensor, codebooks: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.quantize``."""
    if z.numel() == 0:
        return reference.quantize(z, codebooks, channel_dim, statistics)
    laid_out, vectors, books = _arguments(z, codebooks, channel_dim)
    indices, quantized, *parts = torch.ops.vqfast_native.quantize(vectors, books, statistics)
    # the first part has the sums of all; one stage has no dimension of its own
    errors, counts, sums = (part[0, 0] if codebooks.ndim == 2 else part[0] for part in parts)
    losses = (errors / z.numel()).to(books.dtype)
    indices = indices.view(*z.movedim(channel_dim, -1).shape[:-1], *codebooks.shape[:-2])
    return _as(z, laid_out, quantized), indices, losses, losses.clone(), counts, sums


def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """As ``reference.quantize_backward``."""
    losses = grad_codebook_losses, grad_commitment_losses
    if z.numel() == 0:
        return reference.quantize_backward(grad_quantized, *losses, z, codebooks, indices, channel_dim)
    laid_out, vectors, books = _arguments(z, codebooks, channel_dim)
    grad = grad_quantized
    if grad.dtype != laid_out.dtype or grad.stride() != laid_out.stride():
        grad = torch.empty_like(laid_out, requires_grad=False).copy_(grad)
    to_codebooks, to_vectors = (loss.view(-1) * (2 / z.numel()) for loss in losses)
    wanted = any(to_codebooks.tolist())
    grad = grad.as_strided(vectors.shape, vectors.stride())
    grad_z, away = torch.ops.vqfast_native.quantize_backward(
        grad, vectors, books, indices.contiguous(), to_vectors, wanted
    )
    if wanted:
        grad_books = (away[0] * -to_codebooks.view(-1, 1, 1)).to(codebooks.dtype)
        grad_codebooks = grad_books.view(codebooks.shape)
    else:
        grad_codebooks = torch.zeros_like(codebooks, memory_format=torch.contiguous_format)
    return _as(z, laid_out, grad_z), grad_codebooks


def residual_codes(z: Tensor, codebooks: list[Tensor], channel_dim: int) -> Tensor:
    """As ``reference.residual_codes``."""
    if z.numel() == 0:
        return reference.residual_codes(z, codebooks, channel_dim)
    dtype = accumulator(z, codebooks[0])
    _, vectors = _dense(z.double() if dtype == torch.float64 else z, channel_dim)
    indices: Tensor = torch.ops.vqfast_native.residual_codes(
        vectors, [book.to(dtype).contiguous() for book in codebooks]
    )
    return indices.view(*z.movedim(channel_dim, -1).shape[:-1], len(codebooks))


def projected_codes(
    z: Tensor, codebooks: list[Tensor], maps: list[Tensor], unit: bool, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.projected_codes``; in float32 in one pass."""
    if z.numel() == 0 or z.dtype != torch.float32:
        return reference.projected_codes(z, codebooks, maps, unit, details, nearest)
    books, maps = ([tensor.contiguous() for tensor in each] for each in (codebooks, maps))
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.vqfast_native.projected_codes(
        z.contiguous(), books, maps, unit, details
    )
    return found
