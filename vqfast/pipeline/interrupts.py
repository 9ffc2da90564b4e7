"""Signals that ask a process to end, held back until its work is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what kill and schedulers send


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in the list that it gives; they act at the end.

    A second signal acts at once. A signal that is ignored, as by nohup, stays so. Outside the main thread,
    where Python handles no signals, nothing is held back.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    held = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        held = []

    def release() -> None:
        for number in held:
            signal.signal(number, before[number])

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        release()

    for number in held:
        signal.signal(number, note)
    try:
        yield received
    finally:
        release()
        for noted in received:
            signal.raise_signal(noted)
