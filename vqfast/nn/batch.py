"""What a codebook learns from one batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """What a codebook learns from one batch; C is the number of codebooks side by side.

    Attributes:
        vectors: ``(N, C, D)``, or ``None`` where codes aren't revived.
        mask: bool ``(N,)``, which of the vectors count, or ``None`` for all.
        counts: how many vectors each code was given, ``(K,)`` or ``(C, K)``.
        sums: the sum of these vectors, ``(K, D)`` or ``(C, K, D)``.
    """

    vectors: Tensor | None
    mask: Tensor | None
    counts: Tensor
    sums: Tensor


def masked_statistics(
    vectors: Tensor, indices: Tensor, mask: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    """How many vectors each code has, and their sum, of the vectors that ``mask (N,)`` shows.

    Args:
        vectors: ``(N, C, D)``; the hidden ones may be NaN.
        indices: int64 ``(N, C)``.

    Returns:
        ``counts (C, K)``, int64, and ``sums (C, K, D)``, float32 or wider.
    """
    _, num_codebooks, dim = vectors.shape
    # each codebook has one bin more, for hidden vectors
    first_bins = torch.arange(num_codebooks, device=vectors.device) * (num_embeddings + 1)
    bins = (torch.where(mask.unsqueeze(1), indices, num_embeddings) + first_bins).flatten()
    flat = vectors.reshape(-1, dim)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    counts = bins.new_zeros(num_codebooks * (num_embeddings + 1)).index_add_(0, bins, torch.ones_like(bins))
    sums = flat.new_zeros(len(counts), dim).index_add_(0, bins, flat)
    return counts.view(num_codebooks, -1)[:, :-1], sums.view(num_codebooks, -1, dim)[:, :-1]
