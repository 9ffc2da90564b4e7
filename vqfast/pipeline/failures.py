"""The end of one process among several: torchrun's report says why, and the others end cleanly."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

REPORT_SECONDS = 10.0  # how long a process that has lost another leaves the first word to torchrun
GO_ON = "the same command goes on from what is saved"


def record_failure(error: BaseException) -> None:
    """Writes an error to the file that torchrun has named for it, if torchrun started this process.

    torchrun reports it beside the number of the rank that failed first.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        line = f"{type(error).__name__}: {error}"
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        text = json.dumps({"message": {"message": line, "extraInfo": extra}})
        Path(file).write_text(text, encoding="utf-8")


def lost_another() -> ConnectionError:
    """The error of a process that another one has left alone.

    torchrun ends this process meanwhile. Where it waits, the report names the other's rank as the first.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        time.sleep(REPORT_SECONDS)
    return ConnectionError(f"another process stopped; its own error, or torchrun's report, says why; {GO_ON}")


@contextmanager
def ended_by_torchrun(rank: int) -> Iterator[None]:
    """Inside, a process that torchrun ends, since another one failed, says what to do; two do it for all."""

    def end(number: int, frame: FrameType | None) -> None:
        if rank <= 1:
            sys.stderr.write(
                f"vqfast: rank {rank} was asked to end; if another rank failed, torchrun's report has its "
                f"number; {GO_ON}\n"
            )
            sys.stderr.flush()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    free = threading.current_thread() is threading.main_thread()
    free = free and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if free:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
