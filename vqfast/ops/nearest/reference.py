"""Nearest code: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(vectors: Tensor, codebook: Tensor) -> torch.dtype:
    """The dtype of distances, losses, sums and residuals: float32 or wider."""
    return torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)


def divided(codebook: Tensor, lengths: Tensor | None) -> Tensor:
    """``codebook (..., K, D)`` divided by ``lengths (..., K)``, if there are any."""
    return codebook if lengths is None else codebook / lengths.unsqueeze(-1)


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``argmin_k ||x_n - e_k||_2`` by differences in float64, the lowest ``k`` on ties.

    Differences rather than ``x.x - 2 x.e + e.e``: nothing cancels, whatever the offset of the data. The index
    of a vector that isn't finite is 0. A code vector that isn't finite is chosen only where none is finite.
    """
    codebook = divided(codebook, lengths)
    finite, unusable = x.isfinite().all(-1), ~codebook.isfinite().all(-1, keepdim=True)
    numbers = max(1, x[..., :1, 0].numel() * codebook.shape[-2])  # of one vector
    distances = _distances
    if torch.float64 in (x.dtype, codebook.dtype):
        numbers, distances = numbers * x.shape[-1], _distances_of_any_size
    vectors = x.double().split(max(1, 2**22 // numbers), dim=-2)  # 32 MB at a time
    codebook = codebook.double().masked_fill(unusable, torch.inf)
    return torch.cat([distances(part, codebook).argmin(-1) for part in vectors], dim=-1) * finite


def _distances(x: Tensor, codebook: Tensor) -> Tensor:
    """``(..., N, K)``; squares of numbers that were float32 neither over- nor underflow."""
    return torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")


def _distances_of_any_size(x: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances ``(..., N, K)``, those of a vector divided by one power of two near the smallest.

    So the smallest neither over- nor underflows. Each sum of squares is taken in a unit of its own, also a
    power of two; converted to the vector's unit it overflows only where it is far from the smallest.
    """
    x, codebook = x.unsqueeze(-2), codebook.unsqueeze(-3)
    differences = x - codebook
    too_far = differences.isinf().any(-1, keepdim=True)  # of two numbers near the largest
    differences = torch.where(too_far, x / 4 - codebook / 4, differences)
    largest = differences.abs().amax(-1, keepdim=True)
    regular = (largest > 0) & largest.isfinite()
    unit = torch.where(regular, largest / (2 * largest.frexp().mantissa), 1)
    squares = (differences / unit).square().sum(-1, keepdim=True)
    unit = unit / torch.where(regular, unit, torch.inf).amin(-2, keepdim=True)
    unit = torch.where(too_far, 4 * unit, unit)
    return torch.where(regular, squares * unit.square(), squares).squeeze(-1)
