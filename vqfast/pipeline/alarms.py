"""What a training says of itself: how long it takes, and that it goes wrong."""

from __future__ import annotations

from vqfast.pipeline.progress import LINE_SECONDS, estimate_line
from vqfast.pipeline.validation import History, measured

ESTIMATE_STEPS = 10  # after which the time that is left is estimated; the first one takes longer
COLLAPSED = 1.5  # a perplexity below it, at COLLAPSED_RECORDS in a row, is a collapse
COLLAPSED_RECORDS = 10
DIVERGED = 2.0  # times the first loss: the training diverges when DIVERGED_RECORDS in a row are above it
DIVERGED_RECORDS = 3

COLLAPSE = (
    "the codebook has collapsed, all vectors have the same code: "
    "start it by k-means, use moving averages (decay 0.95) or a smaller lr"
)


DIVERGENCE = "the loss has risen far above its start: use a smaller lr, --warmup or --clip 1"


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


def warnings(history: History) -> list[str]:
    """What there is to warn of after a record; each trouble is said once."""
    return [line for line, found in ((COLLAPSE, collapsed), (DIVERGENCE, diverged)) if found(history)]


def diverged(history: History) -> bool:
    """Whether the loss has just stayed far above its start for some records."""
    losses = measured(history["loss"])
    high = [loss > DIVERGED * losses[0] > 0 for loss in losses[-DIVERGED_RECORDS - 1 :]]
    return sum(high[-DIVERGED_RECORDS:]) == DIVERGED_RECORDS == sum(high)


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
