"""Runs the scripts of examples/, in small."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# what makes a script quick, and what it must print
RUNS = {
    "swap_layer": ("--steps 2", ["VQLayer: mean squared error"]),
    "accelerate_codec": ("--seconds 0.1", ["accelerated: 32 quantisers", "codes that differ: 0 of"]),
    "own_pixelcnn": ("--size 5", ["codes that differ from your network's own: 0 of 100"]),
    "own_transformer": ("--size 3", ["codes that differ: 0 of 36"]),
    "complete_images": ("--steps 2", ["upper halves kept in 4 of 4 sheets"]),
    "train_loop": ("--steps 3", ["100 new digits in", "bits a code"]),
    "train_lightning": ("--steps 3", ["dB on held-out digits"]),
    "lead_clips": ("--steps 2", ["of 8 frames are where the actions lead", "the clip in led.gif"]),
    "stream_samples": ("--num 10000", ["10000 samples of 4x4", "drawn alone is the same: True"]),
}


def test_every_example_runs_here() -> None:
    scripts = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == RUNS.keys()
    assert all(len(path.read_text().splitlines()) < 80 for path in scripts.values())


@pytest.mark.parametrize("name", RUNS)
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, wanted = RUNS[name]
    if name == "train_lightning":
        pytest.importorskip("lightning", reason="lightning is not installed")
        warnings.simplefilter("ignore")  # Lightning's own
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *options.split()])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert all(line in out for line in wanted), out
