"""What is said on the way, on standard error: progress bars, and lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

from vqfast.pipeline.ranks import Ranks


def bar(ranks: Ranks, label: str, total: int, done: int = 0, unit: str = "it") -> tqdm:
    """A progress bar on standard error, silent unless that is a terminal and this the first process."""
    ranks.begin(label)
    hidden = not (ranks.first and sys.stderr.isatty())
    return tqdm(
        total=total, initial=done, desc=label, unit=unit, disable=hidden, dynamic_ncols=True, unit_scale=True
    )


def say(ranks: Ranks, topic: str, lines: Iterable[str]) -> None:
    """Lines about a topic, from the first process."""
    if ranks.first:
        sys.stderr.write("".join(f"{topic}: {line}\n" for line in lines))
