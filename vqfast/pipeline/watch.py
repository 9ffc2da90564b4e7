"""Tells the user which rank the others wait for, and ends them where one has stopped for good."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import FrameType
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed import distributed_c10d

from vqfast.pipeline.failures import GO_ON, record_failure

BEAT_SECONDS = 1.0  # from one sign of life to the next
STOPPED_BEATS = 5  # how many beats without a sign of life make a rank count as stopped
LOST_BEATS = 45  # and as lost: those that wait for it end
SAY_SECONDS = 30.0  # how long a rank waits until it tells the user
NAMED = 8  # so many ranks are named, not more; and of so many all speak for themselves
LOST_STATUS = 75  # exit status: try again


_NUMBERS = count()  # of the watches of this process, which are as many in every rank


class Seen(NamedTuple):
    """What one rank saw of all. Of each kind the first ``NAMED`` are in it.

    Attributes:
        beat: of the rank that looked, and its number.
        lost: ranks without a sign of life for ``LOST_BEATS``.
        stopped: ranks without a sign of life for ``STOPPED_BEATS``.
        working: ranks whose last sign says that they work.
    """

    beat: tuple[int, int]
    lost: list[int]
    stopped: list[int]
    working: list[int]


class Watch(threading.Thread):
    """Gives signs of life to the other ranks, and writes to standard error if this rank waits for them.

    The main thread counts as waiting while its innermost function is one of torch.distributed, so the
    messages that models send in forward count too; and while it waits in ``meet``. Each rank gives a sign a
    beat and reads what the first rank saw of all signs, so a thousand ranks ask the store some two thousand
    things a second. Where the first rank doesn't look any more, the next one does.

    Attributes:
        label: the work of the main thread.
    """

    def __init__(self) -> None:
        super().__init__(name="vqfast watch", daemon=True)
        self.label = "the start"
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"vqfast watch {attempt} {next(_NUMBERS)}"  # so that none meets an earlier one
        self._store = distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())
        self._main, self._ended = threading.get_ident(), threading.Event()
        self._meetings, self._meeting = 0, False
        self._looks, self._seen, self._unlooked = self._rank == 0, Seen((-1, 0), [], [], []), 0
        self._signs: list[bytes] = [b""] * self._world
        self._unchanged = [0] * self._world  # for how many beats a rank's sign has been the same
        self._told: list[int] = []
        self._store.set(str(self._rank), "0 works")
        if self._looks:
            self._store.set("seen", json.dumps(self._seen))

    def run(self) -> None:
        """Runs until ``end``, or until the others can't be reached, which the main thread notices too."""
        last, waited = None, 0
        with suppress(RuntimeError):
            self._store.wait([*map(str, range(self._world)), "seen"], timedelta(seconds=SAY_SECONDS))
            for beat in count():
                if self._ended.wait(BEAT_SECONDS):
                    return
                at = "meeting" if self._meeting else _message(self._main)
                waited = waited + 1 if at is not None and at is last else 0
                last = at
                self._store.set(str(self._rank), f"{beat} {'waits' if waited else 'works'}")
                self._look(beat)
                self._tell(waited)

    def awaited(self) -> str:
        """Says at which work this rank waits, and for which others, as far as their signs tell."""
        named = [f"rank {rank}, which has stopped" for rank in self._seen.stopped]
        working = [rank for rank in self._seen.working if rank not in (*self._seen.stopped, self._rank)]
        named += [f"rank {rank}, which still works" for rank in working]
        return f"at {self.label} for {' and '.join(named) or 'the others, which wait too'}"

    def meet(self) -> None:
        """Waits for all ranks, however long they work; they are watched meanwhile."""
        self._meetings += 1
        key, pause = f"meeting {self._meetings}", 0.001
        self._store.add(key, 1)
        self._meeting = True
        while self._store.add(key, 0) < self._world:
            time.sleep(pause)
            pause = min(2 * pause, BEAT_SECONDS)
        self._meeting = False

    def of_first(self, make: Callable[[], str]) -> str:
        """A text that rank 0 makes; the others wait for it as in ``meet``."""
        key = f"text {self._meetings}"
        if self._rank == 0:
            self._store.set(key, make())
        self.meet()
        return str(self._store.get(key).decode())

    def end(self) -> None:
        """Ends the thread; to be called before the process leaves the others."""
        self._ended.set()
        # no longer, as it may hang in a message to a process that has stopped
        self.join(STOPPED_BEATS * BEAT_SECONDS)

    def _look(self, beat: int) -> None:
        """Looks at all signs if no lower rank does, and takes notice of what was seen."""
        if self._looks:
            for rank, sign in enumerate(self._store.multi_get([*map(str, range(self._world))])):
                self._unchanged[rank] = self._unchanged[rank] + 1 if sign == self._signs[rank] else 0
                self._signs[rank] = sign
            lost, stopped = (
                [rank for rank, beats in enumerate(self._unchanged) if beats >= limit][:NAMED]
                for limit in (LOST_BEATS, STOPPED_BEATS)
            )
            working = [rank for rank, sign in enumerate(self._signs) if sign.endswith(b"works")]
            self._seen = Seen((beat, self._rank), lost, stopped, working[:NAMED])
            self._store.set("seen", json.dumps(self._seen))
            return
        (number, by), *ranks = json.loads(self._store.get("seen"))
        seen = Seen((number, by), *ranks)
        self._unlooked = self._unlooked + 1 if seen == self._seen else 0
        self._seen = seen
        if self._unlooked >= STOPPED_BEATS + self._rank:
            self._looks = True
            self._unchanged = [self._unlooked if rank < self._rank else 0 for rank in range(self._world)]

    def _tell(self, waited: int) -> None:
        if waited == round(SAY_SECONDS / BEAT_SECONDS) and (self._looks or self._world <= NAMED):
            _say(f"rank {self._rank} has waited {SAY_SECONDS:g} s {self.awaited()}")
        lost = [rank for rank in self._seen.lost if rank != self._rank]
        if self._looks and lost and lost != self._told:
            _say(f"{self._lost(lost)}; end it, or continue it")
            self._told = lost
        if lost and waited >= LOST_BEATS:
            line = f"{self._lost(lost)}; {GO_ON}"
            _say(line)
            record_failure(TimeoutError(line))
            os._exit(LOST_STATUS)  # the main thread can't leave a message to a process that has stopped

    def _lost(self, ranks: list[int]) -> str:
        numbers = " and ".join(f"rank {rank}" for rank in ranks)
        return f"{numbers} gave no sign of life for {LOST_BEATS * BEAT_SECONDS:g} s: stopped, or out of reach"


def _say(line: str) -> None:
    logging.getLogger("vqfast").warning("vqfast: %s", line)


def _message(thread: int) -> FrameType | None:
    """The call in which a thread waits for other ranks, or None."""
    frame = sys._current_frames().get(thread)
    waits = frame is not None and frame.f_code.co_filename == distributed_c10d.__file__
    return frame if waits else None
