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

import torch
from torch import Tensor

from vqfast.ops.nearest.native import nearest
from vqfast.ops.nearest.reference import accumulator
from vqfast.ops.residual import reference


def _dense(x: Tensor, channel_dim: int) -> Tensor:
    """``x``, copied unless it is contiguous or has its channels last in memory."""
    dense = x.is_contiguous() or x.movedim(channel_dim, -1).is_contiguous()
    return x if dense else x.contiguous()


def _arguments(z: Tensor, codebooks: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """``z`` in a dense layout, and codebooks, each contiguous: float32, or float64 as ``z`` then is.

    One codebook for all stages isn't copied for each.
    """
    if not z.dtype == codebooks.dtype == torch.float32:
        dtype = accumulator(z, codebooks)
        z, codebooks = z.double() if dtype == torch.float64 else z, codebooks.to(dtype)
    one = codebooks if codebooks.ndim == 2 else codebooks[0]
    return _dense(z, channel_dim), codebooks if one.is_contiguous() else codebooks.contiguous()


def _as(z: Tensor, laid_out: Tensor, values: Tensor) -> Tensor:
    """``values``, made in the layout of ``laid_out``, in that and the dtype of ``z``."""
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
    laid_out, books = _arguments(z, codebooks, channel_dim)
    quantized, *others = torch.ops.vqfast_native.quantize(laid_out, books, channel_dim % z.ndim, statistics)
    return _as(z, laid_out, quantized), *others


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
    laid_out, books = _arguments(z, codebooks, channel_dim)
    grad = grad_quantized
    if grad.dtype != laid_out.dtype or grad.stride() != laid_out.stride():
        grad = torch.empty_like(laid_out, requires_grad=False).copy_(grad)
    losses = grad_codebook_losses.contiguous(), grad_commitment_losses.contiguous()
    grad_z, grad_codebooks = torch.ops.vqfast_native.quantize_backward(
        grad, *losses, laid_out, books, indices.contiguous(), channel_dim % z.ndim
    )
    return _as(z, laid_out, grad_z), grad_codebooks.to(codebooks.dtype)


def residual_codes(z: Tensor, codebooks: list[Tensor], channel_dim: int) -> Tensor:
    """As ``reference.residual_codes``."""
    if z.numel() == 0:
        return reference.residual_codes(z, codebooks, channel_dim)
    dtype = accumulator(z, codebooks[0])
    vectors = _dense(z.double() if dtype == torch.float64 else z, channel_dim)
    books = [book.to(dtype).contiguous() for book in codebooks]
    indices: Tensor = torch.ops.vqfast_native.residual_codes(vectors, books, channel_dim % z.ndim)
    return indices


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
