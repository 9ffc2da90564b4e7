"""Progress bars, quiet where nobody looks."""

from __future__ import annotations

import sys

from tqdm import tqdm

from vqfast.pipeline.ranks import Ranks


def bar(ranks: Ranks, label: str, total: int, done: int = 0, unit: str = "it") -> tqdm:
    """A progress bar on standard error, silent unless that is a terminal and this the first process."""
    hidden = not (ranks.first and sys.stderr.isatty())
    return tqdm(
        total=total, initial=done, desc=label, unit=unit, disable=hidden, dynamic_ncols=True, unit_scale=True
    )
