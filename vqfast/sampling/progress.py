"""Progress of sampling: a bar, or a function that is told how many codes were drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int], object]


def check_progress(progress: object) -> None:
    """Raises TypeError unless ``progress`` is a bool or a function."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress is {progress!r}; want a bool or a function")


@contextmanager
def shown(progress: Tick | bool, total: int) -> Iterator[Tick]:
    """What to call with the number of codes drawn since the last call; ``True`` shows a bar of ``total``."""
    if progress is True:
        from tqdm import tqdm

        with tqdm(total=total, unit="code", unit_scale=True) as bar:
            yield bar.update
    else:
        yield progress or (lambda codes: None)


@contextmanager
def taken_back(tick: Tick) -> Iterator[Tick]:
    """``tick``, which on an error is called once more, with the negative sum of its calls."""
    done = 0

    def count(codes: int) -> None:
        nonlocal done
        done += codes
        tick(codes)

    try:
        yield count
    except BaseException:
        tick(-done)
        raise
