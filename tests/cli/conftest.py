"""Inputs and runs for commands to work on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import PRIOR, TRAIN, run


def make_inputs(folder: Path) -> None:
    """Data, good and bad, for commands run in ``folder``."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", np.arange(40) % 3)
    np.save(folder / "odd.npy", pixels[:, :7])
    np.save(folder / "wide.npy", np.zeros((10, 8, 12), np.uint8))
    np.save(folder / "colour.npy", np.zeros((10, 8, 8, 3), np.uint8))
    np.save(folder / "nan.npy", np.full((10, 8, 8), np.nan, np.float32))
    (folder / "truncated.npy").write_bytes((folder / "images.npy").read_bytes()[:500])
    for name, last in (("photos", (8, 8)), ("unequal", (8, 12)), ("broken", (8, 8))):
        (folder / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, last if i == 9 else (8, 8), np.uint8)).save(
                folder / name / f"{i}.png"
            )
    half = (folder / "broken" / "5.png").read_bytes()[:60]
    (folder / "broken" / "5.png").write_bytes(half)
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("x")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs and the runs ``begun`` (trained), ``coded`` (and encoded), ``plain`` and ``whole`` (with priors,
    the first without labels), and the samples of ``whole``, ``drawn``."""
    folder = tmp_path_factory.mktemp("cli")
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(f"{TRAIN} begun") == 0
        shutil.copytree("begun", "coded")
        assert run("encode --run coded") == 0
        for name, options in (("whole", PRIOR), ("plain", f"{PRIOR} --no-labels")):
            shutil.copytree("coded", name)
            assert run(f"train-prior --run {name} {options}") == 0
        assert run("sample --run whole --out drawn --num 7") == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``made``, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for marker in (*tmp_path.glob("*/run.json"), *tmp_path.glob("*/train.toml")):  # where the images are
        marker.write_text(marker.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path
