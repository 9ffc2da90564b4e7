"""Nearest code: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def divided(codebook: Tensor, lengths: Tensor | None) -> Tensor:
    """``codebook (..., K, D)`` by ``lengths (..., K)``, if any."""
    return codebook if lengths is None else codebook / lengths.unsqueeze(-1)


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``argmin_k ||x_n - e_k||_2`` by differences in float64, lowest ``k`` on ties; 0 for a non-finite row.

    Differences rather than ``x.x - 2 x.e + e.e``: nothing cancels, whatever the offset of the data.
    """
    finite, codebook = x.isfinite().all(-1), divided(codebook, lengths)
    distances = max(1, x[..., :1, 0].numel() * codebook.shape[-2])  # of one row
    rows = x.double().split(max(1, 2**22 // distances), dim=-2)  # 32 MB of distances at a time
    mode = "donot_use_mm_for_euclid_dist"
    indices = [torch.cdist(part, codebook.double(), compute_mode=mode).argmin(-1) for part in rows]
    return torch.cat(indices, dim=-1) * finite
