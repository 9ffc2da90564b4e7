"""Tells the user which rank the others wait for, and whether it still works."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from itertools import count
from types import FrameType

import torch.distributed as dist
from torch.distributed import distributed_c10d

BEAT_SECONDS = 1.0  # from one sign of life to the next
LOST_BEATS = 5  # how many beats without a sign of life make a rank count as stopped
SAY_SECONDS = 30.0  # how long a rank waits until it tells the user


class Watch(threading.Thread):
    """Gives signs of life to the other ranks, and writes to standard error if this rank waits for them.

    The main thread counts as waiting while its innermost function is one of torch.distributed, so the
    messages that models send in forward count too.

    Attributes:
        label: the work of the main thread.
    """

    def __init__(self) -> None:
        super().__init__(name="vqfast watch", daemon=True)
        self.label = "the start"
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._store = distributed_c10d.PrefixStore("vqfast watch", distributed_c10d._get_default_store())
        self._main, self._ended = threading.get_ident(), threading.Event()
        self._signs: dict[int, bytes] = {}
        self._unchanged: dict[int, int] = {}  # for how many beats a rank's sign has been the same

    def run(self) -> None:
        """Runs until ``end``, or until the others can't be reached, which the main thread notices too."""
        last, waited = None, 0
        with suppress(RuntimeError):
            for beat in count():
                if self._ended.wait(BEAT_SECONDS):
                    return
                frame = _message(self._main)
                waited = waited + 1 if frame is not None and frame is last else 0
                last = frame
                self._store.set(str(self._rank), f"{beat} {'waits' if waited else 'works'}")
                self._look()
                if waited == round(SAY_SECONDS / BEAT_SECONDS):
                    seconds = f"{SAY_SECONDS:g} s"
                    sys.stderr.write(f"vqfast: rank {self._rank} has waited {seconds} {self.awaited()}\n")

    def awaited(self) -> str:
        """Says at which work this rank waits, and for which others, as far as their signs tell."""
        others = [rank for rank in range(self._world) if rank != self._rank]
        stopped = [rank for rank in others if self._unchanged.get(rank, LOST_BEATS) >= LOST_BEATS]
        working = [rank for rank in others if self._signs.get(rank, b"").endswith(b"works")]
        named = [f"rank {rank}, which has stopped" for rank in stopped]
        named += [f"rank {rank}, which still works" for rank in working if rank not in stopped]
        return f"at {self.label} for {' and '.join(named) or 'the others, which wait too'}"

    def end(self) -> None:
        """Ends the thread; to be called before the process leaves the others."""
        self._ended.set()
        self.join(
            LOST_BEATS * BEAT_SECONDS
        )  # no longer, as it may hang in a message to a process that has stopped

    def _look(self) -> None:
        for rank in range(self._world):
            sign = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
            self._unchanged[rank] = self._unchanged.get(rank, 0) + 1 if sign == self._signs.get(rank) else 0
            self._signs[rank] = sign


def _message(thread: int) -> FrameType | None:
    """The call in which a thread waits for other ranks, or None."""
    frame = sys._current_frames().get(thread)
    waits = frame is not None and frame.f_code.co_filename == distributed_c10d.__file__
    return frame if waits else None
