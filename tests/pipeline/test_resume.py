"""Killed and interrupted runs: begun again, they end with the bytes of an undisturbed one."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from tests.cli.command import without_data

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

# A process that has imported everything, and forks one for each command, to be killed: starting a new Python
# each time would take longer than the commands. It saves after every step and makes shards of 16 items.
DRIVER = """
import json, os, signal, sys, time
from pathlib import Path

import matplotlib.figure, PIL.Image, sklearn.datasets, sklearn.svm, tqdm, torch._dynamo
import vqfast.sampling.executors.reference, vqfast.sampling.executors.torch
from vqfast.cli import main
from vqfast.pipeline import curves, demo, loop, shards

loop.SAVE_SECONDS, shards.SHARD, demo.SHIFT, demo.SAMPLES_PER_CLASS = -1, 16, 0, 12
demo.VQVAE = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4, "decay": 0.95}
demo.PRIOR = {"channels": 8, "num_layers": 2, "first_kernel_size": 3, "head_channels": 8}
torch.set_num_threads(1)
curves.draw_curves({"step": [0], "loss": [1.0]}, title="")  # the first picture takes longest

def child(argv, die_at, after):
    replace, writes = Path.replace, 0
    def dying(self, target):
        nonlocal writes
        writes += 1
        if writes == die_at:
            if after:
                replace(self, target)
            os._exit(99)
        return replace(self, target)
    if die_at:
        Path.replace = dying
    output = os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(output, 2)
    try:
        status = main(argv)
    except KeyboardInterrupt:
        status = 131  # it came before main or after it
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    argv, number, seconds, die_at, after = json.loads(line)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(argv, die_at, after)
    if number:
        time.sleep(seconds)
        os.kill(pid, number)
    status = os.waitpid(pid, 0)[1]
    print(json.dumps([status, time.monotonic() - began, Path("stderr").read_text()]), flush=True)
"""

Run = Callable[..., tuple[int, float, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(60) % 3)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    """Runs a command in a process of its own: exit status (minus the signal that killed it), seconds, stderr.

    A signal ``number`` comes after ``seconds``; or the process dies at its ``die_at``-th write of a file,
    before the new file takes the old one's place or, with ``after``, right after.
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )

    def run(
        argv: str, number: int = 0, seconds: float = 0.0, die_at: int = 0, after: bool = False
    ) -> tuple[int, float, str]:
        driver.stdin.write(json.dumps([argv.split(), number, seconds, die_at, after]) + "\n")
        driver.stdin.flush()
        status, took, said = json.loads(driver.stdout.readline())
        return os.waitstatus_to_exitcode(status), took, said

    with driver:
        yield run
        driver.stdin.close()


TRAIN = "--data images.npy --labels labels.npy --hidden-channels 8 --num-embeddings 8 --embedding-dim 4"
COMMANDS = [
    TRAIN.join(["train --out {} ", " --decay 0.9 --steps 12 --batch-size 8 --lr 1e-3"]),
    "encode --run {}",
    "train-prior --run {} --channels 8 --num-layers 2 --head-channels 8 --steps 12 --batch-size 8",
    "sample --run {} --out {} --num 60 --seed 3",
    "sample --run {} --out {}-completed --complete held-out --draws 3 --num 18 --format png",
]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, run: Run) -> list[float]:
    """The run ``whole``: how long each command took."""
    times = []
    for command in COMMANDS:
        status, took, said = run(command.replace("{}", "whole"))
        assert status == 0, said
        times.append(took)
    return times


def results(folder: Path) -> dict[str, bytes]:
    """All files but hidden and timed ones; the report names its folder, which is cut out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name[0] != "." and path.name not in ("times.json", "timings.json")
    }
    if "report.html" in found:
        own_name = rf"(?<![\w-]){folder.name}(?![\w-])".encode()
        without_times = re.sub(rb"<dt>When</dt><dd>[^<]*</dd>", b"", found["report.html"])
        found["report.html"] = re.sub(own_name, b"", without_times)
    return found


def assert_same(a: Path, b: Path) -> None:
    one, two = results(a), results(b)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []
    assert not list(b.rglob("*.tmp"))


def assert_whole(files: dict[str, bytes]) -> None:
    """Whether every file can be read to its end."""
    readers: dict[str, Callable[[bytes], Any]] = {
        ".csv": lambda data: list(csv.reader(io.StringIO(data.decode()), strict=True)),
        ".html": lambda data: data.rstrip().index(b"</html>", -7),
        ".json": json.loads,
        ".safetensors": load,
        ".toml": lambda data: tomllib.loads(data.decode()),
        ".npz": lambda data: dict(np.load(io.BytesIO(data))),
        ".png": lambda data: Image.open(io.BytesIO(data)).load(),
    }
    for name, data in files.items():
        readers[Path(name).suffix](data)


INTERRUPTED = "vqfast: interrupted; the same command goes on from here\n"


@pytest.mark.parametrize("seed", range(2))
def test_signals_at_random_moments(folder: Path, run: Run, undisturbed: list[float], seed: int) -> None:
    rng = random.Random(seed)
    name, seen = f"signals-{seed}", set()
    for command, took in zip(COMMANDS, undisturbed, strict=True):
        command = command.replace("{}", name)
        for number in (signal.SIGKILL, signal.SIGINT) * 2:
            status, _, said = run(command, number, took * rng.random() ** 2)  # rather early: part is done
            if status == 130:
                assert without_data(said) == INTERRUPTED
            # 131 and death by SIGINT: it came while the driver's own code ran
            assert status in (0, 130, 131, -signal.SIGINT, -signal.SIGKILL), said
            seen.add(status)
            if (folder / name).exists():
                assert_whole(results(folder / name))
        status, _, said = run(command)
        assert status == 0, said
    assert seen & {130, -signal.SIGKILL}
    assert_same(folder / "whole", folder / name)


@pytest.mark.parametrize("after", [False, True])
def test_death_in_the_middle_of_a_write(
    folder: Path, run: Run, undisturbed: list[float], after: bool
) -> None:
    name = f"writes-{after}"
    for command in COMMANDS:
        command, deaths, status = command.replace("{}", name), 0, 99
        while status == 99:  # at its first write, then begun again at its second, and so on
            before = results(folder / name) if (folder / name).exists() else {}
            status, _, said = run(command, die_at=deaths + 1, after=after)
            assert status in (0, 99), said
            now = results(folder / name)
            assert_whole(now)
            if deaths == 0 and not after:
                assert now == before  # it came to nothing, and damaged nothing
            deaths += 1
        assert deaths > 2
    assert_same(folder / "whole", folder / name)


def test_more_steps_survive_every_death(folder: Path, run: Run) -> None:
    """Trained in parts and killed at each write of a file, a model is that of one undisturbed training."""
    longer = COMMANDS[0].replace("--steps 12", "--steps 20")
    assert run(longer.replace("{}", "at-once"))[0] == 0
    assert run(COMMANDS[0].replace("{}", "in-parts"))[0] == 0
    status, deaths = 99, 0
    while status == 99:
        status, _, said = run(longer.replace("{}", "in-parts"), die_at=deaths + 1)
        assert status in (0, 99), said
        assert_whole(results(folder / "in-parts"))
        deaths += 1
    assert deaths > 2
    one, two = (folder / name / "vqvae.safetensors" for name in ("at-once", "in-parts"))
    assert one.read_bytes() == two.read_bytes()


def test_finished_stages_are_not_redone(folder: Path, run: Run, undisturbed: list[float]) -> None:
    redrawn = {"samples.png"}  # a picture of what is there

    def times() -> dict[str, int]:
        files = (path for path in (folder / "whole").rglob("*") if path.is_file())
        return {path.name: path.stat().st_mtime_ns for path in files if path.name not in {".lock", *redrawn}}

    before, bytes_before = times(), results(folder / "whole")
    for command in COMMANDS:
        assert run(command.replace("{}", "whole"))[0] == 0
    assert times() == before and results(folder / "whole") == bytes_before


def test_another_seed_gives_other_bytes(folder: Path, run: Run, undisturbed: list[float]) -> None:
    for command in COMMANDS:
        assert (
            run(
                command.replace("{}", "other").replace("--seed 3", "")
                + " --seed 4" * ("encode" not in command)
            )[0]
            == 0
        )
    one, two = results(folder / "whole"), results(folder / "other")
    assert sorted(one) == sorted(two)
    same = {name for name in one if one[name] == two[name]}
    assert same <= {"vqvae.config.json", "prior.config.json"}


def test_demo_is_killed_and_goes_on(folder: Path, run: Run) -> None:
    command = "demo --steps-scale 0.01 --out {}"
    status, took, said = run(command.replace("{}", "demo"))
    assert status == 0, said
    killed, rng = command.replace("{}", "demo-killed"), random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        assert run(killed, number, rng.uniform(0, took))[0] in (0, 130, 131, -signal.SIGINT, -signal.SIGKILL)
    for die_at in (2, 5):
        run(killed, die_at=die_at)
    assert run(killed)[0] == 0
    assert_same(folder / "demo", folder / "demo-killed")
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "demo").rglob("*.*") if path.name != ".lock"
    }
    assert run(command.replace("{}", "demo"))[0] == 0  # all is done
    assert {path: path.stat().st_mtime_ns for path in before} == before
