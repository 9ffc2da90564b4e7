"""What a training says of itself: how long it takes, and that it goes wrong."""

from __future__ import annotations

from vqfast.pipeline.progress import LINE_SECONDS, estimate_line
from vqfast.pipeline.validation import History, measured

ESTIMATE_STEPS = 10  # after which the time that is left is estimated; the first one takes longer
COLLAPSED = 1.5  # a perplexity below it, at COLLAPSED_RECORDS in a row, is a collapse
COLLAPSED_RECORDS = 10

COLLAPSE = (
    "the codebook has collapsed, all vectors have the same code: "
    "start it by k-means, use moving averages (decay 0.95) or a smaller lr"
)


class Estimate:
    """Estimates once how long a training takes, by its first steps.

    Args:
        first: the first step of this process.
        steps: how many the training has.
    """

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._steps, self._began = first, steps, 0.0

    def line(self, step: int, now: float) -> str | None:
        """What there is to say after a step that ended ``now``, in seconds: mostly nothing."""
        if step == self._first:
            self._began = now
        if step != self._first + ESTIMATE_STEPS:
            return None
        left = self._steps - step - 1
        seconds = (now - self._began) / ESTIMATE_STEPS * left
        return estimate_line(left, seconds) if seconds > LINE_SECONDS else None


def collapsed(history: History) -> bool:
    """Whether a codebook has just collapsed: nearly all vectors have had one code for many steps.

    It is true once for each collapse.
    """
    return any(_collapsed(history, name) for name in history if name.startswith("perplexity"))


def _collapsed(history: History, name: str) -> bool:
    low = [value < COLLAPSED for value in measured(history[name])[-COLLAPSED_RECORDS - 1 :]]
    unused = history.get(name.replace("perplexity", "dead_codes"), [0])
    dead = measured(unused)[-1] > 0  # or there is a single code
    return dead and sum(low[-COLLAPSED_RECORDS:]) == COLLAPSED_RECORDS and sum(low) == COLLAPSED_RECORDS
