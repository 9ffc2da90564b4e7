"""What a codebook learns from one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Vectors(NamedTuple):
    """The vectors of a batch, of which only some are ever read.

    Attributes:
        num: N, how many there are.
        pick: gives the vectors ``(n, C, D)`` of int64 numbers ``(n,)`` in ``0..N - 1``.
    """

    num: int
    pick: Callable[[Tensor], Tensor]


def vectors_of(z: Tensor, dim: int, separate: bool = False) -> Vectors:
    """The vectors of ``z``, whose dimension ``dim`` has the channels.

    Args:
        separate: whether the dimension before the last is for codebooks of their own; then ``dim`` is -1.
    """
    z = z.detach().movedim(dim, -1)
    places, num_codebooks = (z.shape[:-2], z.shape[-2]) if separate else (z.shape[:-1], 1)

    def pick(numbers: Tensor) -> Tensor:
        count, place = numbers.shape[0], []
        for size in reversed(places):  # torch.unravel_index takes sizes for constants when compiled
            place.append(numbers % size)
            numbers = numbers // size
        return z[tuple(reversed(place))].reshape(count, num_codebooks, z.shape[-1])

    return Vectors(math.prod(places), pick)


def residuals_of(z: Tensor, dim: int, codebooks: Tensor, indices: Tensor) -> Vectors:
    """What the stages of ``codebooks (q, K, D)`` leave of the vectors of ``z``; ``indices (..., q)``."""
    vectors, codebooks, indices = vectors_of(z, dim), codebooks.detach(), indices.flatten(0, -2)

    def pick(numbers: Tensor) -> Tensor:
        residuals = vectors.pick(numbers)
        for codebook, own in zip(codebooks, indices[numbers].unbind(-1), strict=True):
            residuals = residuals - codebook[own].unsqueeze(1)
        return residuals

    return Vectors(vectors.num, pick)


def side_by_side(batches: list[Vectors]) -> Vectors:
    """The vectors of equally large batches: the first of each batch, then the second of each, and so on."""
    if len(batches) == 1:
        return batches[0]

    def pick(numbers: Tensor) -> Tensor:
        each = torch.stack([batch.pick(numbers // len(batches)) for batch in batches])
        return each[numbers % len(batches), torch.arange(numbers.shape[0], device=numbers.device)]

    return Vectors(len(batches) * batches[0].num, pick)


class Batch(NamedTuple):
    """What a codebook learns from one batch; C is the number of codebooks side by side.

    Attributes:
        vectors: those that codes revive from, or ``None`` where codes aren't revived.
        mask: bool ``(N,)``, which of the vectors count, or ``None`` for all.
        counts: how many vectors each code was given, ``(K,)`` or ``(C, K)``.
        sums: the sum of these vectors, ``(K, D)`` or ``(C, K, D)``.
    """

    vectors: Vectors | None
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
