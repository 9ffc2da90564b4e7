"""Quantisers: codes, straight-through outputs and losses in one pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vqfast.checks import check_channels, check_floating
from vqfast.ops.onnx import quantize as _quantize


class Quantized(NamedTuple):
    """The result of ``quantize`` and, with the stages' dimension Q, of ``residual_quantize``.

    Attributes:
        quantized: the code vectors in the place of ``z_e``: its shape, dtype and layout. Its gradient passes
            to ``z_e`` unchanged (straight-through). A vector with a NaN or an infinity quantises to NaN.
        indices: int64, the shape of ``z_e`` without its channels; of stages with Q last.
        codebook_loss: ``mean((z_e - z_q)^2)``, float32 or wider, differentiable by the codebook only;
            ``(Q,)`` of stages.
        commitment_loss: the same value, differentiable by ``z_e`` only.
        counts: int64 ``(K,)``, the number of vectors of each code; ``(Q, K)`` of stages. Like ``sums``
            without gradient, and of no code (``(0,)``, ``(0, D)``) where the statistics weren't asked for.
        sums: ``(K, D)``, the sum of the vectors of each code; ``(Q, K, D)`` of stages.

    Example:
        >>> codebook = torch.tensor([[0.0], [1.0]])
        >>> z_e = torch.tensor([[0.1], [0.9], [1.2]])
        >>> out = vqfast.functional.quantize(z_e, codebook, return_statistics=True)
        >>> out.indices, out.counts, out.sums
        (tensor([0, 1, 1]), tensor([1, 2]), tensor([[0.1000], [2.1000]]))
    """

    quantized: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    counts: Tensor
    sums: Tensor


def quantize(
    z_e: Tensor, codebook: Tensor, *, channel_dim: int = 1, return_statistics: bool = False
) -> Quantized:
    """Replaces each vector by its nearest code vector, with losses and the straight-through gradient.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), section
    3.2.

    Args:
        z_e: floating point, its D channels at ``channel_dim``, batch and spatial dimensions around them.
        codebook: ``(K, D)``.
        channel_dim: the dimension of the channels of ``z_e``.
        return_statistics: whether to count and sum the vectors of each code, as moving averages need it.

    Returns:
        ``Quantized``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes don't fit, or tensors are on different devices.

    Example:
        >>> z_e = torch.tensor([[[0.9, 2.0], [0.1, 2.0]]])  # (B, D, T): the vectors (0.9, 0.1) and (2, 2)
        >>> codebook = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> out = vqfast.functional.quantize(z_e, codebook, return_statistics=True)
        >>> out.indices, out.codebook_loss
        (tensor([[0, 1]]), tensor(0.5050))
        >>> out.counts, out.sums
        (tensor([1, 1]), tensor([[0.9000, 0.1000],
                [2.0000, 2.0000]]))
    """
    check_floating(z_e=z_e, codebook=codebook)
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want (K, D) with K, D >= 1")
    check_channels(z_e, channel_dim, codebook.shape[1])
    return Quantized(*_quantize(z_e, codebook, channel_dim, return_statistics))


def residual_quantize(
    z_e: Tensor, codebooks: Tensor, *, channel_dim: int = 1, return_statistics: bool = False
) -> Quantized:
    """Quantises by Q stages in one pass: each stage codes the residual that the stages before it left.

    Source: Zeghidour et al. 2021, "SoundStream" (arXiv 2107.03312), algorithm 1.

    Args:
        z_e: floating point, its D channels at ``channel_dim``, batch and spatial dimensions around them.
        codebooks: ``(Q, K, D)``; one codebook for all stages may be expanded.
        channel_dim: the dimension of the channels of ``z_e``.
        return_statistics: whether to count and sum the residuals of each stage's codes.

    Returns:
        ``Quantized``, with the sum of the stages' code vectors as ``quantized``. The losses of a stage
        differentiate by its own codebook and by ``z_e``, not by the codebooks of the stages before it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes don't fit, or tensors are on different devices.

    Example:
        >>> z_e = torch.tensor([[[1.2], [2.0]]])  # (B, D, T): the vector (1.2, 2)
        >>> codebooks = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.5, 0.0], [0.25, 0.0]]])
        >>> out = vqfast.functional.residual_quantize(z_e, codebooks)
        >>> out.indices, out.quantized.flatten()
        (tensor([[[0, 1]]]), tensor([1.2500, 2.0000]))
    """
    check_floating(z_e=z_e, codebooks=codebooks)
    if codebooks.ndim != 3 or 0 in codebooks.shape:
        raise ValueError(f"codebooks has shape {tuple(codebooks.shape)}; want (Q, K, D) with Q, K, D >= 1")
    check_channels(z_e, channel_dim, codebooks.shape[2])
    return Quantized(*_quantize(z_e, codebooks, channel_dim, return_statistics))
