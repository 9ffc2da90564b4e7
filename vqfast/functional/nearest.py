"""The nearest code of each vector."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_floating
from vqfast.ops.onnx import nearest as _nearest

METRICS = ("l2", "cosine")


def _of_size_one(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``x`` by constants so that no square along ``dim`` over- or underflows; these constants, mostly 1."""
    largest = x.detach().abs().amax(dim, keepdim=True)
    extreme = (largest > 2.0**40) | ((largest < 2.0**-40) & (largest > 0))
    size = torch.where(extreme, largest, 1)
    return x / size, size


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """``x`` with vectors of length 1 along ``dim``, in float32 or wider.

    A zero vector stays, and passes its gradient on.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.dtype == torch.float64:
        x, _ = _of_size_one(x, dim)
    # in float64 no square of float32 over- or underflows
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float64).to(x.dtype)
    return x / torch.where(norm > 0, norm, 1)


@overload
def nearest_code(
    x: Tensor, codebook: Tensor, metric: str = "l2", return_distance: Literal[False] = False
) -> Tensor: ...
@overload
def nearest_code(
    x: Tensor, codebook: Tensor, metric: str = "l2", *, return_distance: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def nearest_code(
    x: Tensor, codebook: Tensor, metric: str = "l2", return_distance: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Index of each vector's nearest code: ``argmin_k ||x_n - e_k||_2``, the lowest ``k`` on exact ties.

    Exact: the argmin of the inputs at their given values, whatever their offset or scale. A row of ``x``
    with a NaN or an infinity gets index 0 and distance NaN. A code vector with one is never chosen while
    another is finite; where none is, the index is 0. The Triton kernels compare float64 numbers
    of float32's range (1e-38 to 1e38) only. The time depends on the shapes, hardly on what the numbers are.

    Args:
        x: ``(..., N, D)``, floating point.
        codebook: ``(..., K, D)``; its leading dimensions are codebooks side by side (heads, groups) and
            broadcast with those of ``x``.
        metric: ``"l2"``, or ``"cosine"`` for the smallest angle, ``argmax_k cos(x_n, e_k)``. A zero vector
            has no angle: as a row it gets index 0, as a code it is chosen only where all codes are zero;
            its cosines count as 0. Codes of one direction tie up to rounding in float64, of
            which this metric takes copies.
        return_distance: whether to return the distances too: ``||x_n - e_k||_2`` (not squared), or
            ``1 - cos``, taken from float64 differences; differentiable by both inputs.

    Returns:
        int64 ``(..., N)``, or with ``return_distance`` a pair with the distances ``(..., N)``, float32 or
        wider.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit, or ``metric`` is unknown.
    """
    check_floating(x=x, codebook=codebook)
    check_choice("metric", metric, METRICS)
    if x.ndim < 2 or codebook.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and codebook {tuple(codebook.shape)}; want (.., N, D), (.., K, D)"
        )
    if x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} channels and codebook {codebook.shape[-1]}; want the same D")
    if codebook.shape[-2] < 1 or codebook.shape[-1] < 1:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want K >= 1 and D >= 1")
    lead = x.shape[:-2]
    if codebook.ndim > 2:
        try:
            lead = torch.broadcast_shapes(lead, codebook.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"x {tuple(x.shape)} and codebook {tuple(codebook.shape)} don't broadcast over their "
                "leading dims"
            ) from None
        x = x.expand(*lead, *x.shape[-2:])
    dtypes = x.dtype, codebook.dtype
    if metric == "l2":
        indices = _nearest(x, codebook)
    else:  # between unit vectors the nearest code is that of the smallest angle
        x, codebook = unit(x.double()), unit(codebook.double())
        is_zero = (codebook == 0).all(-1, keepdim=True)
        indices = _nearest(x, torch.where(is_zero, 4, codebook))  # out of every unit vector's reach
        indices = torch.where((x == 0).all(-1), 0, indices)
    if not return_distance:
        return indices
    dtype = torch.promote_types(torch.promote_types(*dtypes), torch.float32)
    codes = codebook.expand(*lead, *codebook.shape[-2:]).take_along_dim(indices.unsqueeze(-1), -2)
    if metric == "l2":
        difference, size = _of_size_one(x.double() - codes.double(), -1)
        distance = torch.linalg.vector_norm(difference, dim=-1) * size.squeeze(-1)
    else:
        distance = (1 - (x * codes).sum(-1)).clamp(min=0)
    return indices, torch.where(x.isfinite().all(-1), distance, torch.nan).to(dtype)


def nearest_unit_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest of the codes divided by their lengths: ``argmin_k ||x_n - e_k / ||e_k|| ||_2``.

    As ``nearest_code(x, torch.nn.functional.normalize(codebook, dim=-1))``, which a CPU need not hold.

    Args:
        x: ``(..., N, D)``, floating point; as it is.
        codebook: ``(K, D)``. Lengths below 1e-12 count as that.

    Returns:
        int64 ``(..., N)``.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    check_floating(x=x, codebook=codebook)
    if x.ndim < 2 or codebook.ndim != 2 or x.shape[-1] != codebook.shape[-1] or 0 in codebook.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and codebook {tuple(codebook.shape)}; want (.., N, D), (K, D)"
        )
    lengths = torch.linalg.vector_norm(codebook.detach(), dim=-1).clamp_min(1e-12)
    return _nearest(x, codebook, lengths)
