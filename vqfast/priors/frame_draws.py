"""What the draws of a clip's frames share: one program, and a seed for each frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqfast.priors.pixelcnn import PixelCNN
from vqfast.sampling.draw import philox
from vqfast.sampling.program import Program

_WORD = 0xFFFFFFFF


class LoweredOnce:
    """A prior whose program and weights are made once, for all frames of a call."""

    def __init__(self, prior: PixelCNN) -> None:
        self._prior = prior
        program, weights = prior.lower()
        self._lowered = program, {name: weight.contiguous() for name, weight in weights.items()}

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        return self._lowered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)


def seed_of_frame(seed: int, frame: int) -> int:
    """The seed of the draws of a frame: the user's for the first one, words of Philox for the others.

    >>> seed_of_frame(7, 0), seed_of_frame(7, 1) != seed_of_frame(7, 2)
    (7, True)
    """
    if frame == 0:
        return seed
    zero = torch.tensor(0)
    words = philox((torch.tensor(frame), zero, zero, zero), (seed & _WORD, seed >> 32))
    low, high = int(words[0]), int(words[1])
    return high << 32 | low
