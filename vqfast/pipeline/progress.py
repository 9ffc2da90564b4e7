"""Progress bars on standard error, and lines for the logger ``vqfast``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vqfast.pipeline.ranks import Ranks

if TYPE_CHECKING:  # tqdm is optional
    from tqdm import tqdm

LOG = logging.getLogger("vqfast")
LINE_SECONDS = 30.0  # from one plain line to the next
PLAIN = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
DAY_SECONDS = 86_400.0


def bar(ranks: Ranks, label: str, total: int, *, done: int = 0, unit: str = "it") -> tqdm[Any]:
    """A progress bar on standard error, in the first process.

    Where standard error is no terminal, a plain line follows every ``LINE_SECONDS``.
    """
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc]  # of a package without types
        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            last = self.disable and not self.pos  # close() adds a newline to it
            self.fp.write(f"{self}{'' if last else chr(10)}")

        def clear(self, nolock: bool = False) -> None:
            pass  # plain lines stay

    ranks.works_at(label)
    common: dict[str, Any] = {"total": total, "initial": done, "desc": label, "unit": unit}
    common |= {"disable": not ranks.first, "unit_scale": True, "leave": None}
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True)
    times: dict[str, Any] = {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}
    return Lines(**common, **times, miniters=1, bar_format=PLAIN)


def estimate_line(steps: int, seconds: float) -> str:
    """How long a training takes, in words.

    Args:
        steps: how many steps are left.
        seconds: how long they take together.
    """
    from tqdm import tqdm

    line = f"{steps} steps are left, about {tqdm.format_interval(seconds)}"
    if seconds < DAY_SECONDS:
        return line
    return (
        f"{line}: {seconds / DAY_SECONDS:.1f} days; fewer steps, smaller items or a smaller batch take less"
    )


def warn_of(ranks: Ranks, topic: str, lines: Iterable[str]) -> None:
    """Logs lines about a topic as warnings, in the first process."""
    for line in lines if ranks.first else ():
        LOG.warning("%s: %s", topic, line)
