"""The indices of residual quantisers without losses and gradients, for encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from vqfast.checks import check_channels, check_choice, check_floating
from vqfast.functional.nearest import METRICS
from vqfast.ops.onnx import projected_codes as _projected_codes
from vqfast.ops.onnx import residual_codes as _residual_codes


def _check(z_e: Tensor, codebooks: Sequence[Tensor], maps: Sequence[Sequence[Tensor]]) -> None:
    """Floating-point tensors; one or more codebooks, all ``(K, D)`` of one dtype."""
    named = {f"codebooks[{q}]": codebook for q, codebook in enumerate(codebooks)}
    named |= {f"maps[{q}][{i}]": tensor for q, stage in enumerate(maps) for i, tensor in enumerate(stage)}
    check_floating(z_e=z_e, **named)
    if not codebooks:
        raise ValueError("codebooks is empty; want one or more")
    first = codebooks[0]
    alike = all((codebook.shape, codebook.dtype) == (first.shape, first.dtype) for codebook in codebooks)
    if not alike or first.ndim != 2 or 0 in first.shape:
        got = ", ".join(f"{tuple(codebook.shape)} {codebook.dtype}" for codebook in codebooks)
        raise ValueError(f"codebooks are {got}; want all (K, D) of one dtype with K, D >= 1")


def residual_codes(z_e: Tensor, codebooks: Iterable[Tensor], *, channel_dim: int = 1) -> Tensor:
    """Encodes vectors by the stages of a residual quantiser: the ``indices`` of ``residual_quantize`` alone.

    Args:
        z_e: floating point, its D channels at ``channel_dim``, batch and spatial dimensions around them.
        codebooks: one ``(K, D)`` for each stage; they needn't lie side by side in memory.
        channel_dim: the dimension of the channels of ``z_e``.

    Returns:
        int64, the shape of ``z_e`` without its channels, and the number of stages Q last.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes don't fit, or tensors are on different devices.

    Example:
        >>> codebooks = [torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [1.0]])]
        >>> vqfast.functional.residual_codes(torch.tensor([[5.2], [0.3]]), codebooks)
        tensor([[1, 1],
                [0, 0]])
    """
    codebooks = list(codebooks)
    _check(z_e, codebooks, [])
    check_channels(z_e, channel_dim, codebooks[0].shape[1])
    return _residual_codes(z_e, codebooks, channel_dim)


@overload
def projected_codes(
    z_e: Tensor,
    codebooks: Iterable[Tensor],
    maps: Iterable[Iterable[Tensor]],
    *,
    metric: str = "l2",
    return_parts: Literal[False] = False,
) -> Tensor: ...
@overload
def projected_codes(
    z_e: Tensor,
    codebooks: Iterable[Tensor],
    maps: Iterable[Iterable[Tensor]],
    *,
    metric: str = "l2",
    return_parts: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
def projected_codes(
    z_e: Tensor,
    codebooks: Iterable[Tensor],
    maps: Iterable[Iterable[Tensor]],
    *,
    metric: str = "l2",
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Encodes vectors by residual stages that each search in a narrower space, in one pass without gradients.

    A stage maps the residual to the width of its codes, finds the nearest code, maps the code vector back and
    subtracts it.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv 2306.06546),
    section 3.2.

    Args:
        z_e: ``(B, C, T)``, floating point.
        codebooks: one ``(K, D)`` for each stage.
        maps: four tensors for each stage: weight ``(D, C)`` and bias ``(D,)`` to the width of its codes,
            weight ``(C, D)`` and bias ``(C,)`` back.
        metric: ``"l2"``, or ``"cosine"`` for the smallest angle, between vectors that are divided by their
            lengths in the dtype of ``z_e``.
        return_parts: whether to return what the stages searched for and what they add up to.

    Returns:
        ``indices``, int64 ``(B, T, Q)``. With ``return_parts`` the triple ``(indices, latents, quantized)``:
        ``(B, Q * D, T)``, the mapped residual of each stage; and the shape of ``z_e``, the sum of the mapped
        code vectors.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes or dtypes don't fit, or tensors are on different devices.

    Example:
        >>> codebooks = [torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [1.0]])]
        >>> maps = [[torch.ones(1, 2) / 2, torch.zeros(1), torch.ones(2, 1), torch.zeros(2)]] * 2
        >>> z_e = torch.tensor([[[5.0, 0.3], [5.0, 0.1]]])  # (B, C, T)
        >>> vqfast.functional.projected_codes(z_e, codebooks, maps)
        tensor([[[1, 1],
                 [0, 0]]])
    """
    codebooks, stages = list(codebooks), [list(stage) for stage in maps]
    _check(z_e, codebooks, stages)
    check_choice("metric", metric, METRICS)
    flat = [tensor for stage in stages for tensor in stage]
    if z_e.ndim != 3:
        raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want (B, C, T)")
    channels, width = z_e.shape[1], codebooks[0].shape[1]
    want = [(width, channels), (width,), (channels, width), (channels,)]
    got = [[tuple(tensor.shape) for tensor in stage] for stage in stages]
    if got != [want] * len(codebooks):
        raise ValueError(f"maps have shapes {got}; want {len(codebooks)} times {want}")
    if len(dtypes := {tensor.dtype for tensor in (z_e, *codebooks, *flat)}) > 1:
        raise ValueError(f"z_e, codebooks and maps have dtypes {sorted(map(str, dtypes))}; want one dtype")
    with torch.no_grad():
        indices, latents, quantized = _projected_codes(z_e, codebooks, flat, metric == "cosine", return_parts)
    return (indices, latents, quantized) if return_parts else indices
