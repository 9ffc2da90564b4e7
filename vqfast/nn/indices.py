"""Indices to decode, of which some may be masked."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.checks import check_device, check_indices, check_mask


def visible(
    indices: Tensor, mask: Tensor | None, codebook: Tensor, grouped: bool
) -> tuple[Tensor, Tensor | None]:
    """Checked ``indices`` as int64, and which of them stand for a code: a bool tensor, or ``None`` for all.

    Args:
        indices: integer ``(B, *spatial)``, or ``grouped`` by heads or stages, which stand last; -1 where
            masked.
        mask: bool ``(B, *spatial)``; where it is ``False`` indices aren't looked at.
        codebook: ``(..., K, D)``.

    Raises:
        TypeError: ``indices`` isn't an integer tensor, or ``mask`` isn't a bool tensor.
        ValueError: an index is below -1 or above K - 1, the shapes don't fit, or the devices differ.
    """
    if mask is not None and isinstance(indices, Tensor):
        check_mask(mask, indices if grouped else indices.unsqueeze(-1), -1)
        mask = mask.unsqueeze(-1) if grouped else mask
        indices = torch.where(mask, indices, 0)
    hidden = check_indices("indices", indices, codebook.shape[-2], minimum=-1)
    check_device("indices", indices, "codebook", codebook.device)
    indices = indices.long()
    shown = indices >= 0 if hidden else None
    if mask is not None:
        shown = mask if shown is None else shown & mask
    return indices, shown
