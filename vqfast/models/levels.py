"""One level of a hierarchical model, and the encoder of all levels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from vqfast.nn import VQLayer


class LevelsEncoder(nn.Module):
    """Stages of which each starts from the features of the one before; features come out coarsest first."""

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.insert(0, x)
        return features


class Level(nn.Module):
    """From the encoder's features at one resolution and the state of the coarser levels to codes, and on.

    ``state`` is what the coarser levels leave, ``None`` at the coarsest; ``context`` is what ``enter`` makes
    of it for the other methods.
    """

    vq: VQLayer

    @abstractmethod
    def enter(self, state: Tensor | None, batch_size: int) -> Tensor | None:
        """The context of this level."""

    @abstractmethod
    def vectors(self, features: Tensor, context: Tensor | None) -> Tensor:
        """What this level quantises, ``(B, D, *spatial)``."""

    @abstractmethod
    def join(self, quantized: Tensor, context: Tensor | None) -> Tensor:
        """The state that this level leaves."""

    @abstractmethod
    def stand_in(self, context: Tensor) -> Tensor:
        """Vectors ``(B, D, *spatial)`` in place of code vectors, where this level's codes are missing."""

    def logits(self, context: Tensor | None) -> Tensor | None:
        """The level's own prior, logits ``(B, K, *spatial)`` of its codes, or ``None`` without one."""
        return None
