"""Compiles the tunings that a sweep tries, in many processes, into Triton's cache.

``python -m benchmarks.gate_compile LINE NUMBER`` runs the call of a line of tunings once, with the
neighbour of that number in the line's place.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import islice

from benchmarks import machine, sweep

PROCESSES = 16


def ahead(name: str, count: int, seconds: float) -> None:
    """Compiles ``count`` neighbours of a line, and ends what isn't done after ``seconds``."""
    until = time.monotonic() + seconds
    waiting, running = list(range(count)), list[subprocess.Popen[bytes]]()
    while (waiting or running) and time.monotonic() < until:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < PROCESSES:
            command = [sys.executable, "-m", "benchmarks.gate_compile", name, str(waiting.pop(0))]
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(command, cwd=machine.ROOT, stdout=quiet, stderr=quiet))
        time.sleep(0.1)
    for process in running:
        process.kill()
        process.wait()


def main(name: str, number: int) -> None:
    """Runs the call once; a tuning that doesn't fit the chip is for the sweep to note."""
    line = sweep.lines()[name]
    tuning = next(islice(sweep.neighbours(line.tunings[line.key]), number, None))
    with sweep.replaced(line.tunings, line.key, tuning):
        line.call()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
