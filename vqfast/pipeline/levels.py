"""The codes of a model are one grid for each level, from the coarsest: names and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vqfast.models import LevelPrior
from vqfast.priors import ClipPrior, ConditionedPrior
from vqfast.priors.base import CausalPrior

# A prior of one level; that of a finer level takes the codes of the coarser ones.
Prior = CausalPrior | ConditionedPrior | ClipPrior
AnyPrior = Prior | LevelPrior  # the last isn't trained on codes: a model brings it


def level_name(name: str, level: int) -> str:
    """What belongs to the coarsest level has the plain name; finer levels have their number behind it.

    >>> level_name("prior", 0), level_name("prior", 1)
    ('prior', 'prior-1')
    """
    return f"{name}-{level}" if level else name


def concatenated(batches: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Batches of the same tensors, such as the grids of each level, as one batch."""
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def level_of(prior: AnyPrior) -> int:
    """The level whose codes a prior is of."""
    return prior.level if isinstance(prior, (ConditionedPrior, LevelPrior)) else 0


def given(prior: AnyPrior, levels: Sequence[Tensor]) -> dict[str, Any]:
    """What a prior takes of the grids of all levels, as keywords of its methods."""
    level = level_of(prior)
    return {"coarser": levels[:level]} if level else {}
