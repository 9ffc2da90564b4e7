"""Quantisers: codes, straight-through outputs and losses in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqfast.checks import check_channels, check_floating, check_indices, check_sizes
from vqfast.ops.onnx import quantize as _quantize
from vqfast.ops.onnx import residual_quantize as _residual_quantize


class Quantized(NamedTuple):
    """What ``quantize`` returns; see there."""

    quantized: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    counts: Tensor
    sums: Tensor


def quantize(z_e: Tensor, codebook: Tensor, channel_dim: int = 1, statistics: bool = False) -> Quantized:
    """Quantises ``z_e`` with the straight-through gradient (van den Oord et al. 2017, section 3.2).

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebook: ``(K, D)``.
        statistics: whether to fill ``counts`` and ``sums`` (they have no gradient).

    Returns:
        ``quantized``: as ``z_e``; backward copies its gradient to ``z_e``. A vector with a NaN or an infinity
        quantises to NaN.
        ``indices``: int64, the shape of ``z_e`` without its channels.
        ``codebook_loss``, ``commitment_loss``: ``mean((z_e - z_q)^2)``, differentiable by the codebook only
        and by ``z_e`` only; float32 or wider.
        ``counts`` int64 ``(K,)``, ``sums`` ``(K, D)``: number and sum of the vectors of each code.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    check_floating(z_e=z_e, codebook=codebook)
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want (K, D) with K, D >= 1")
    check_channels(z_e, channel_dim, codebook.shape[1])
    return Quantized(*_quantize(z_e, codebook, channel_dim, statistics))


def residual_quantize(
    z_e: Tensor, codebooks: Tensor, channel_dim: int = 1, statistics: bool = False
) -> Quantized:
    """Quantises ``z_e`` by Q stages, each coding what the ones before it left over, in one pass.

    Source: Zeghidour et al. 2021, SoundStream (arXiv 2107.03312), algorithm 1.

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebooks: ``(Q, K, D)``; one for all stages may be expanded.
        statistics: whether to fill ``counts`` and ``sums`` (they have no gradient).

    Returns:
        As ``quantize``, but ``quantized`` is the sum of the stages' codes, ``indices`` has Q last, and the
        others have it first: losses ``(Q,)``, ``counts (Q, K)``, ``sums (Q, K, D)``, of what each stage was
        given. A stage's losses differentiate by its own codebook and by ``z_e``, not by the codes before it.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    check_floating(z_e=z_e, codebooks=codebooks)
    if codebooks.ndim != 3 or 0 in codebooks.shape:
        raise ValueError(f"codebooks has shape {tuple(codebooks.shape)}; want (Q, K, D) with Q, K, D >= 1")
    check_channels(z_e, channel_dim, codebooks.shape[2])
    return Quantized(*_residual_quantize(z_e, codebooks, channel_dim, statistics))


def perplexity(indices: Tensor, num_embeddings: int) -> Tensor:
    """``exp(-sum_k p_k log p_k)`` of the codes' histogram: 1 when one code is used, K when all are alike.

    Args:
        indices: integer, any shape, values in ``0..num_embeddings - 1``.

    Returns:
        A float32 scalar; NaN for no indices.

    Raises:
        TypeError, ValueError: as ``checks.check_indices``.
    """
    check_sizes(num_embeddings=num_embeddings)
    check_indices("indices", indices, num_embeddings)
    flat = indices.long().flatten()
    counts = flat.new_zeros(num_embeddings).index_add(
        0, flat, torch.ones_like(flat)
    )  # vmap knows no bincount
    p = counts.double() / indices.numel()
    return torch.special.entr(p).sum().exp().float()
