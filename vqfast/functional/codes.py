"""The indices alone of residual quantisers, for encoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vqfast.checks import check_channels, check_floating
from vqfast.ops.onnx import projected_codes as _projected_codes
from vqfast.ops.onnx import residual_codes as _residual_codes


def _check(z_e: Tensor, codebooks: Sequence[Tensor], maps: Sequence[Sequence[Tensor]]) -> None:
    """Floating tensors, the codebooks all ``(K, D)`` of one dtype, one or more."""
    named = {f"codebooks[{q}]": book for q, book in enumerate(codebooks)}
    named |= {f"maps[{q}][{i}]": tensor for q, stage in enumerate(maps) for i, tensor in enumerate(stage)}
    check_floating(z_e=z_e, **named)
    if not codebooks:
        raise ValueError("codebooks are none; want one or more")
    first = codebooks[0]
    alike = all((book.shape, book.dtype) == (first.shape, first.dtype) for book in codebooks)
    if not alike or first.ndim != 2 or 0 in first.shape:
        got = ", ".join(f"{tuple(book.shape)} {book.dtype}" for book in codebooks)
        raise ValueError(f"codebooks are {got}; want all (K, D) of one dtype with K, D >= 1")


def residual_codes(z_e: Tensor, codebooks: Sequence[Tensor], channel_dim: int = 1) -> Tensor:
    """The indices of ``residual_quantize`` alone, for encoding.

    Args:
        z_e: floating point, ``D`` channels at ``channel_dim``, batch and spatial dimensions around it.
        codebooks: each stage's, ``(K, D)``, wherever they lie in memory.

    Returns:
        int64, the shape of ``z_e`` without its channels, and Q last.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    codebooks = list(codebooks)
    _check(z_e, codebooks, [])
    check_channels(z_e, channel_dim, codebooks[0].shape[1])
    return _residual_codes(z_e, codebooks, channel_dim)


def projected_codes(
    z_e: Tensor,
    codebooks: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    unit: bool = False,
    details: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of residual stages that each stand between linear maps, in one pass and without gradients.

    Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (DAC), section 3.2.

    Args:
        z_e: ``(B, C, T)``, floating point.
        codebooks: each stage's, ``(K, D)``.
        maps: each stage's weight ``(D, C)`` and bias ``(D,)`` into the width of its codes, weight ``(C, D)``
            and bias ``(C,)`` back.
        unit: whether a stage finds the code of the smallest angle, by vectors divided by their lengths.
        details: whether to return what stands after the indices.

    Returns:
        int64 ``(B, T, Q)``; ``(B, Q * D, T)``, what each stage was given; and as ``z_e``, the sum of what
        came back of all stages. The latter two have no sample without ``details``.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: shapes or dtypes don't fit.
    """
    codebooks, maps = list(codebooks), [list(stage) for stage in maps]
    _check(z_e, codebooks, maps)
    flat = [tensor for stage in maps for tensor in stage]
    if z_e.ndim != 3:
        raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want (B, C, T)")
    channels, width = z_e.shape[1], codebooks[0].shape[1]
    wanted = [(width, channels), (width,), (channels, width), (channels,)]
    got = [[tuple(tensor.shape) for tensor in stage] for stage in maps]
    if got != [wanted] * len(codebooks):
        raise ValueError(f"maps have shapes {got}; want {len(codebooks)} times {wanted}")
    if len(dtypes := {tensor.dtype for tensor in (z_e, *codebooks, *flat)}) > 1:
        raise ValueError(f"the arguments have dtypes {sorted(map(str, dtypes))}; want one")
    with torch.no_grad():
        return _projected_codes(z_e, codebooks, flat, unit, details)
