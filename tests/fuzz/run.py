"""Commands on files that are damaged, foreign or hostile: none may crash, hang or take much memory.

``python -m tests.fuzz.run [cases] [first]`` runs each case in a process of its own, forked when everything
is imported, and prints a table of what came of them; some minutes for 2,000 on one core. It ends with
status 1 if a case ended in a traceback or by a signal, took more than 10 s of the CPU or more than 1 GB.
"""

from __future__ import annotations

import gzip
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from tests.cli.command import PRIOR, TRAIN, run
from tests.cli.conftest import make_inputs
from tests.fuzz.mutate import mutate

SECONDS, GIGABYTE = 10, 1 << 30  # of the CPU: a busy machine's clock says nothing of a case
WAITING = 30 * SECONDS  # of the clock, for a case that only waits
ADDRESSES = 3 * GIGABYTE  # more than is allowed: a case that asks for as much shows, and the machine lives

ENCODE = "encode --run whole --out new --data"
LIKELIHOOD = "likelihood --run whole --out bits.npy"
PHOTOS = [f"{ENCODE} photos --channels 1", f"{ENCODE} photos --channels 1 --size 8"]
TRAIN_PRIOR = f"train-prior --run coded {PRIOR}"
SAMPLE = "sample --run whole --out new --num 2"
DECODE = "decode --run whole --codes drawn/samples --out new"
REPORT = "report --run whole coded --out page.html"
TARGETS = {  # a file, and the commands that read it
    "whole/run.json": [
        f"{TRAIN} whole",
        "encode --run whole",
        LIKELIHOOD,
        SAMPLE,
        f"{SAMPLE} --complete photos",
        "report --run whole",
        REPORT,
    ],
    "coded/run.json": [TRAIN_PRIOR, f"{TRAIN} coded", "encode --run coded"],
    "drawn/run.json": ["sample --run whole --out drawn --num 7", DECODE],
    "whole/vqvae.config.json": [
        "reconstruct --run whole --out p.png",
        f"{ENCODE} images.npy",
        f"{TRAIN} whole",
        "picture --run whole --of codebook --out p.png",
        "report --run whole",
    ],
    "whole/vqvae.csv": ["report --run whole", REPORT],
    "whole/prior.config.json": [LIKELIHOOD, SAMPLE, "report --run whole"],
    "whole/vqvae.safetensors": ["reconstruct --run whole --out p.png", f"{ENCODE} images.npy"],
    "whole/prior.safetensors": [LIKELIHOOD, SAMPLE],
    "halfway/vqvae.state.safetensors": [f"{TRAIN} halfway"],
    "whole/codes/train/00000.npz": [f"{LIKELIHOOD} --codes whole/codes/train", "report --run whole"],
    "coded/codes/train/00000.npz": [TRAIN_PRIOR],
    "drawn/samples/00000.npz": [f"{DECODE} --format png"],
    "codes.npy": [
        "decode --run whole --codes codes.npy --out new",
        f"{LIKELIHOOD} --codes codes.npy --label 1",
    ],
    "images.npy": [f"{ENCODE} images.npy", f"{ENCODE} images.npy --size 4"],
    "labels.npy": [f"{ENCODE} images.npy --labels labels.npy"],
    "images.npz": [f"{ENCODE} images.npz"],
    "t-images-idx3-ubyte": [f"{ENCODE} t-images-idx3-ubyte"],
    "t-labels-idx1-ubyte": [f"{ENCODE} t-images-idx3-ubyte"],
    "z-images-idx3-ubyte.gz": [f"{ENCODE} z-images-idx3-ubyte.gz"],
    "mask.png": [f"{SAMPLE} --complete photos --label 1 --keep mask.png"],
}
TARGETS |= {
    f"photos/{number}": PHOTOS for number in ("20.png", "21.jpg", "22.gif", "23.bmp", "24.tif", "25.webp")
}


class Outcome(NamedTuple):
    """What came of a case: its end, its last line, seconds of the CPU, bytes beyond those of the start."""

    end: str
    line: str
    seconds: float
    memory: int

    @property
    def good(self) -> bool:
        """Whether it did its work or was refused, in time and within bounds."""
        return self.end in ("worked", "refused") and self.seconds < SECONDS and self.memory < GIGABYTE


def workspace(folder: Path) -> None:
    """Good files of every kind, and the runs that the commands want."""
    make_inputs(folder)
    os.chdir(folder)
    for command in (f"{TRAIN} whole", "encode --run whole"):
        assert run(command) == 0
    shutil.copytree("whole", "coded")
    for command in (f"train-prior --run whole {PRIOR}", "sample --run whole --out drawn --num 7"):
        assert run(command) == 0
    halfway(folder)
    pixels = np.load("images.npy")
    np.savez("images.npz", images=pixels, labels=np.load("labels.npy"))
    np.save("codes.npy", np.load("whole/codes/train/00000.npz")["indices"])
    images = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    Path("t-images-idx3-ubyte").write_bytes(images)
    Path("t-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array([40], ">u4").tobytes() + bytes(40))
    Path("z-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    for name in TARGETS:
        if name.startswith("photos") or name == "mask.png":
            Image.fromarray(pixels[0]).save(name)


def halfway(folder: Path) -> None:
    """A training that was killed after some steps."""
    from vqfast.pipeline import loop
    from vqfast.pipeline.state import State

    def killed(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    save, seconds, loop.SAVE_SECONDS = State.save, loop.SAVE_SECONDS, -1.0
    State.save = killed
    try:
        assert run(f"{TRAIN} halfway") == 130
    finally:
        loop.SAVE_SECONDS, State.save = seconds, save


@contextmanager
def _elsewhere(base: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "case")
        shutil.copytree(base, copy)
        for marker in copy.glob("*/run.json"):  # the runs note where their images are
            marker.write_text(marker.read_text().replace(str(base), str(copy)))
        yield copy


def case(base: Path, number: int) -> tuple[str, Outcome]:
    """Mutates a file of a copy of ``base``, as the number says, and runs a command on it."""
    rng = random.Random(number)
    target = sorted(TARGETS)[number % len(TARGETS)]
    with _elsewhere(base) as folder:
        mutate(rng, folder / target, [base / rng.choice(sorted(TARGETS))])
        return target, in_a_process(folder, rng.choice(TARGETS[target]))


def in_a_process(folder: Path, command: str) -> Outcome:
    """Runs a command in a forked process, within bounds of time and memory."""
    said = folder / "said"
    pid = os.fork()
    if pid == 0:
        _child(folder, command, said)
    _, status, usage = os.wait4(pid, 0)
    memory = 1024 * usage.ru_maxrss - int(Path(f"{said}.base").read_text())
    lines = said.read_text(errors="replace").splitlines() or [""]
    code = os.waitstatus_to_exitcode(status)
    ends = {0: "worked", 2: "refused", 99: "traceback", -signal.SIGALRM: "hung", -signal.SIGXCPU: "hung"}
    end = ends.get(code, f"status {code}")
    if end == "refused" and not lines[-1].startswith("vqfast: error: "):
        end = "refused without a word"
    return Outcome(end, lines[-1][:300], usage.ru_utime + usage.ru_stime, memory)


def _child(folder: Path, command: str, said: Path) -> None:
    status = 98
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path(f"{said}.base").write_text(str(resident))
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES,) * 2)
        output = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="backslashreplace") for n in (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, 2 * SECONDS))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WAITING)
        status = run(command)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        status = 99
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(cases: int, first: int) -> int:
    """Runs that many cases; prints the table and what went wrong."""
    torch.set_num_threads(1)
    table: Counter[tuple[str, str]] = Counter()
    bad, slowest, largest = 0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        workspace(Path(folder))
        for number in range(first, first + cases):
            target, outcome = case(Path(folder), number)
            end = outcome.end if outcome.good or outcome.end not in ("worked", "refused") else "too much"
            table[Path(target).suffix or "IDX", end] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
            if not outcome.good:
                bad += 1
                print(f"case {number}, {target}: {outcome}", flush=True)
        os.chdir("/")
    ends = sorted({end for _, end in table})
    print(f"{'file':14}" + "".join(f"{end:>12}" for end in ends))
    for kind in sorted({kind for kind, _ in table}):
        print(f"{kind:14}" + "".join(f"{table[kind, end]:12}" for end in ends))
    print(f"{cases} cases, {bad} bad; at most {slowest:.1f} s of the CPU and {largest / GIGABYTE:.2f} GB")
    return int(bad > 0)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [2000, 0][len(numbers) :])))
