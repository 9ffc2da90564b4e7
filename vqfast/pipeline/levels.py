"""The codes of a model are one grid for each level, from the coarsest: names and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def level_name(name: str, level: int) -> str:
    """What belongs to the coarsest level has the plain name; finer levels have their number behind it.

    >>> level_name("prior", 0), level_name("prior", 1)
    ('prior', 'prior-1')
    """
    return f"{name}-{level}" if level else name


def concatenated(batches: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Batches of the same tensors, such as the grids of each level, as one batch."""
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]
