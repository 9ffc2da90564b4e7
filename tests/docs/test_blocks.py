"""Runs the code blocks of README and docs/, page by page."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import BLOCK, PAGES, ROOT
from vqfast.cli import main
from vqfast.data.images.cifar import BATCHES

EXCUSE = re.compile(r"(\$ )?# Not run by the tests: \w.*\.")
# options that make a command of the pipeline quick; the last of two counts
QUICK = {
    "train": "--size 16 --num-embeddings 8 --hidden-channels 8 --embedding-dim 4 --steps 2 --batch-size 4",
    "train-second-stage": "--num-embeddings 8 --hidden-channels 8 --steps 2 --batch-size 4",
    "train-prior": "--channels 8 --num-layers 2 --head-channels 8 --steps 2 --batch-size 4",
    "sample": "--batch-size 8",
}
SAMPLES = "--num 4"


def blocks(page: Path, language: str) -> Iterator[str]:
    """The blocks of a page in a language that don't say why they can't run."""
    found = (body for kind, body in BLOCK.findall(page.read_text()) if kind == language)
    return (body for body in found if not EXCUSE.match(body))


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's console blocks."""
    lines = "".join(blocks(page, "console")).splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ ")]


def quick(command: list[str]) -> list[str]:
    """The arguments of ``vqfast`` in a command line, with options that make it quick."""
    name, *options = command[command.index("vqfast") + 1 :]
    if "--num" in options:
        options += SAMPLES.split()
    return [name, *options, *QUICK.get(name, "").split()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos/``, ``other/``, ``photo.png``, CIFAR-10's files and a trained run, ``trained``."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    for number, name in enumerate(["photos"] * 20 + ["other"] * 4):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{number}.png")
    shutil.copy(folder / "other/20.png", folder / "photo.png")
    (folder / "cifar-10-batches-bin").mkdir()
    for name in (*BATCHES, "test_batch.bin"):
        records = b"".join(bytes([label]) + rng.bytes(3072) for label in range(10))
        (folder / "cifar-10-batches-bin" / name).write_bytes(records)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "train --data photos --out trained",
            "encode --run trained",
            "train-prior --run trained",
        ):
            assert main(quick(["vqfast", *command.split()])) == 0
    return folder


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs, to work in."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    marker = tmp_path / "trained" / "run.json"  # the run notes where its images are
    marker.write_text(marker.read_text().replace(str(inputs), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python(page: Path, here: Path) -> None:
    shutil.copytree("trained", "runs/photos")
    names: dict[str, object] = {}
    for body in blocks(page, "python"):
        exec(compile(body, page.name, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_console(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's commands in their order; ``runs/digits`` is there, as are the images."""
    shutil.copytree("trained", "runs/digits")
    for command in commands(page):
        for setting in command[: command.index("vqfast")]:
            monkeypatch.setenv(*setting.split("="))
        if command[1] != "demo":  # which has tests of its own
            assert main(quick(command)) == 0, command


def test_no_block_is_left_out() -> None:
    """Directives, the two languages that run, installations, or blocks that say why they can't run."""
    for page in PAGES:
        for kind, body in BLOCK.findall(page.read_text()):
            runs = kind in ("python", "console") or kind.startswith("{")
            installs = all(line.startswith("pip install") for line in body.splitlines())
            assert runs or installs or kind == "text" or EXCUSE.match(body), (page, body)
