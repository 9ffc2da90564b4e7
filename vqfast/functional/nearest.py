"""The nearest code of each vector."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from vqfast.checks import check_channels, check_choice, check_floating
from vqfast.ops.onnx import nearest as _nearest

METRICS = ("l2", "cosine")


def _scaled(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``vectors / size`` and ``size``, a constant of each vector, so that no square along ``dim`` over- or
    underflows; it is 1 where none would.
    """
    largest = vectors.detach().abs().amax(dim, keepdim=True)
    extreme = (largest > 2.0**40) | ((largest < 2.0**-40) & (largest > 0))
    size = torch.where(extreme, largest, 1)
    return vectors / size, size


def _unit(vectors: Tensor, dim: int = -1) -> Tensor:
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    if vectors.dtype == torch.float64:
        vectors, _ = _scaled(vectors, dim)
    # in float64 no square of float32 over- or underflows
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True, dtype=torch.float64).to(vectors.dtype)
    return vectors / torch.where(norm > 0, norm, 1)


def unit(z_e: Tensor, *, channel_dim: int = -1) -> Tensor:
    """Divides vectors by their lengths.

    Args:
        z_e: floating point, the channels of its vectors at ``channel_dim``.
        channel_dim: the dimension of the channels.

    Returns:
        The shape of ``z_e``, float32 or wider. A zero vector stays zero, and its gradient passes unchanged.

    Raises:
        TypeError: ``z_e`` isn't a floating-point tensor, or ``channel_dim`` isn't an integer.
        ValueError: ``z_e`` has fewer than two dimensions, or none at ``channel_dim``.

    Example:
        >>> vqfast.functional.unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    check_floating(z_e=z_e)
    check_channels(z_e, channel_dim)
    return _unit(z_e, channel_dim)


@overload
def nearest_code(
    z_e: Tensor,
    codebook: Tensor,
    *,
    metric: str = "l2",
    channel_dim: int = -1,
    return_distances: Literal[False] = False,
) -> Tensor: ...
@overload
def nearest_code(
    z_e: Tensor,
    codebook: Tensor,
    *,
    metric: str = "l2",
    channel_dim: int = -1,
    return_distances: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def nearest_code(
    z_e: Tensor,
    codebook: Tensor,
    *,
    metric: str = "l2",
    channel_dim: int = -1,
    return_distances: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Finds the nearest code of each vector: ``argmin_k ||z_n - e_k||_2``, the lowest ``k`` on exact ties.

    The result is the argmin of the inputs at their given values, whatever their offset or scale; it is never
    rounded from approximate distances. The Triton kernels compare only float64 numbers within float32's range
    (1e-38 to 1e38). The time depends on the shapes, hardly on the values.

    Args:
        z_e: ``(..., N, D)``, floating point; or in another layout, its D channels at ``channel_dim``.
        codebook: ``(K, D)``; or ``(..., K, D)``, several codebooks side by side (heads, groups), whose
            leading dimensions broadcast with those of ``z_e``.
        metric: ``"l2"``, or ``"cosine"`` for the smallest angle, ``argmax_k cos(z_n, e_k)``. A zero vector
            has no angle: it gets index 0. A zero code vector is chosen only where all are zero. Cosines with
            either count as 0. Code vectors of one direction tie up to rounding in float64; this metric makes
            float64 copies of both inputs.
        channel_dim: the dimension of the channels of ``z_e``.
        return_distances: whether to return the distances too.

    Returns:
        ``indices``, int64, the shape of ``z_e`` without its channels. With ``return_distances`` the pair
        ``(indices, distances)``: ``||z_n - e_k||_2`` (not squared) or ``1 - cos`` in the shape of
        ``indices``, taken from float64 differences, float32 or wider, differentiable by both inputs. A vector
        with a NaN or an infinity gets index 0 and distance NaN. A code vector with one is never chosen while
        another is finite.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes don't fit, tensors are on different devices, or ``metric`` is unknown.

    Example:
        >>> z_e = torch.tensor([[0.9, 0.1], [0.2, 3.0], [5.0, 5.0]])
        >>> codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vqfast.functional.nearest_code(z_e, codebook)
        tensor([0, 1, 0])
        >>> vqfast.functional.nearest_code(z_e, codebook, return_distances=True)[1]
        tensor([0.1414, 2.0100, 6.4031])
        >>> images = torch.randn(2, 2, 4, 4)  # (B, D, H, W)
        >>> vqfast.functional.nearest_code(images, codebook, channel_dim=1).shape
        torch.Size([2, 4, 4])
    """
    check_floating(z_e=z_e, codebook=codebook)
    check_choice("metric", metric, METRICS)
    if codebook.ndim < 2 or codebook.shape[-2] < 1 or codebook.shape[-1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want (..., K, D) with K, D >= 1")
    check_channels(z_e, channel_dim, codebook.shape[-1])
    if channel_dim != -1:
        z_e = z_e.movedim(channel_dim, -1)
    lead = z_e.shape[:-2]
    if codebook.ndim > 2:
        try:
            lead = torch.broadcast_shapes(lead, codebook.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"z_e has shape {tuple(z_e.shape)} and codebook {tuple(codebook.shape)}; "
                "want leading dimensions that broadcast"
            ) from None
        z_e = z_e.expand(*lead, *z_e.shape[-2:])
    dtypes = z_e.dtype, codebook.dtype
    if metric == "l2":
        indices = _nearest(z_e, codebook)
    else:  # between unit vectors the nearest code has the smallest angle
        z_e, codebook = _unit(z_e.double()), _unit(codebook.double())
        is_zero = (codebook == 0).all(-1, keepdim=True)
        indices = _nearest(z_e, torch.where(is_zero, 4, codebook))  # out of every unit vector's reach
        indices = torch.where((z_e == 0).all(-1), 0, indices)
    if not return_distances:
        return indices
    dtype = torch.promote_types(torch.promote_types(*dtypes), torch.float32)
    chosen = codebook.expand(*lead, *codebook.shape[-2:]).take_along_dim(indices.unsqueeze(-1), -2)
    if metric == "l2":
        difference, size = _scaled(z_e.double() - chosen.double(), -1)
        distances = torch.linalg.vector_norm(difference, dim=-1) * size.squeeze(-1)
    else:
        distances = (1 - (z_e * chosen).sum(-1)).clamp(min=0)
    return indices, torch.where(z_e.isfinite().all(-1), distances, torch.nan).to(dtype)


def nearest_unit_code(z_e: Tensor, codebook: Tensor, *, channel_dim: int = -1) -> Tensor:
    """Finds the nearest code after dividing the code vectors by their lengths, but not the vectors.

    ``argmin_k ||z_n - e_k / ||e_k|| ||_2``: the indices of ``nearest_code(z_e, F.normalize(codebook))``. On a
    CPU the divided codebook is never held in memory.

    Args:
        z_e: ``(..., N, D)``, floating point; or in another layout, its D channels at ``channel_dim``.
        codebook: ``(K, D)``. Lengths below 1e-12 count as 1e-12.
        channel_dim: the dimension of the channels of ``z_e``.

    Returns:
        int64, the shape of ``z_e`` without its channels.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes don't fit, or tensors are on different devices.

    Example:
        >>> codebook = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
        >>> vqfast.functional.nearest_unit_code(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), codebook)
        tensor([0, 1])
    """
    check_floating(z_e=z_e, codebook=codebook)
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want (K, D) with K, D >= 1")
    check_channels(z_e, channel_dim, codebook.shape[1])
    lengths = torch.linalg.vector_norm(codebook.detach(), dim=-1).clamp_min(1e-12)
    return _nearest(z_e.movedim(channel_dim, -1), codebook, lengths)
