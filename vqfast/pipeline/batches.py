"""Which items make up each batch of a training: by the seed and the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def batch_numbers(num: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of ``num`` items make up a step's batch: int64 ``(batch_size,)``.

    Epochs follow each other without a gap, each in an order of its own.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    numbers = torch.empty_like(places)
    for epoch in sorted(set((places // num).tolist())):
        in_epoch = places // num == epoch
        numbers[in_epoch] = _order(num, epoch, seed)[places[in_epoch] % num]
    return numbers


def step_seed(seed: int, step: int) -> int:
    """The seed of what is drawn in a step, which therefore is the same in a training that went on."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _order(num: int, epoch: int, seed: int) -> Tensor:
    # torch's generator would look at the low 32 bits of a seed only: too few for both
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(num), kind="stable"))
