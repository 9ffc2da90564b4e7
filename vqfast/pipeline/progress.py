"""Progress bars and lines on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vqfast.pipeline.ranks import Ranks

if TYPE_CHECKING:  # tqdm is optional
    from tqdm import tqdm


def bar(ranks: Ranks, label: str, total: int, *, done: int = 0, unit: str = "it") -> tqdm[Any]:
    """A progress bar on standard error; hidden unless that is a terminal and this is the first process."""
    from tqdm import tqdm

    ranks.works_at(label)
    hidden = not (ranks.first and sys.stderr.isatty())
    return tqdm(
        total=total, initial=done, desc=label, unit=unit, disable=hidden, dynamic_ncols=True, unit_scale=True
    )


def write_lines(ranks: Ranks, topic: str, lines: Iterable[str]) -> None:
    """Writes lines about a topic to standard error, in the first process."""
    if ranks.first:
        sys.stderr.write("".join(f"{topic}: {line}\n" for line in lines))
