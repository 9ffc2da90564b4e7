"""Figures of the held-out part while a model trains: the best weights, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vqfast.pipeline.options import Training

History = dict[str, list[float | None]]  # None where a figure wasn't measured


@dataclass(frozen=True)
class Validation:
    """Measures a model on held-out data while it trains.

    Args:
        measure: gives figures by name, the same ones in every process; the model is in eval mode.
        figure: the name of the one that is compared; less is better.
        every: steps from one measurement to the next.
        patience: after so many measurements without a better figure the training ends; None: never.
    """

    measure: Callable[[], Mapping[str, float]]
    figure: str
    every: int
    patience: int | None = None

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the model is measured after this step of so many."""
        return step % self.every == 0 or step == steps - 1

    def is_best(self, history: History) -> bool:
        """Whether the last measurement is better than all before."""
        return self._since_best(history) == 0

    def is_over(self, history: History) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self._since_best(history) >= self.patience

    def _since_best(self, history: History) -> int:
        values = measured(history.get(self.figure, ()))
        values = [value if math.isfinite(value) else math.inf for value in values]
        return len(values) - 1 - values.index(min(values)) if values else 0


def validation_of(
    training: Training, figure: str, measure: Callable[[], Mapping[str, float]]
) -> Validation | None:
    """The validation that a training asks for; see ``Validation``."""
    if training.val_every is None:
        return None
    return Validation(measure, figure, training.val_every, training.patience)


def measured(column: Sequence[float | None]) -> list[float]:
    """The values of a history's column without those that weren't measured."""
    return [value for value in column if value is not None]
