"""The suite ``training`` in small: crops, runs that are kept, and its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import photos, training, training_runs
from benchmarks.core import AbsentError
from benchmarks.training_runs import COMMAND, DEFAULTS, PEER, Reached, Setting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs of one colour each."""
    where = tmp_path / "photographs"
    where.mkdir()
    for i in range(5):
        pixels = np.full((24, 30, 3), 50 * i, np.uint8)
        Image.fromarray(pixels).save(where / f"{i}.png")
    return where


def test_no_photograph_is_on_both_sides(folder: Path) -> None:
    crops, held_out = photos.split(folder, (8, 2), 16)
    assert crops.shape == (8, 3, 16, 16) and held_out.shape == (2, 3, 16, 16)
    assert set(crops.unique().mul(255).round().tolist()) == {0, 100, 150, 200}
    assert held_out.unique().mul(255).round().tolist() == [50]
    with pytest.raises(AbsentError, match=r"0 photographs in .*; want 2 or more"):
        photos.photographs(folder / "nowhere")


@pytest.mark.parametrize("name", [*training_runs.LAYERS, COMMAND])
def test_every_layer_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith(PEER):
        pytest.importorskip("vector_quantize_pytorch")
    monkeypatch.setattr(training_runs, "HIDDEN", 8)
    monkeypatch.setattr(training_runs, "MOMENTS", 2)
    monkeypatch.setattr(training_runs, "EVERY", 1)
    lr = None if name == COMMAND else 1e-3
    reached = training_runs.train(
        Setting(name, 8, lr, 2, 0), (torch.rand(20, 3, 16, 16), torch.rand(5, 3, 16, 16))
    )
    assert 0 < reached.psnr < 40 and 1 <= reached.perplexity <= 8


def test_finished_runs_are_kept_and_tables_name_the_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train(setting: Setting, crops: tuple[torch.Tensor, torch.Tensor]) -> Reached:
        trained.append(setting)
        psnr = 20 + 1000 * (setting.lr or 0) + len(setting.layer) + setting.seed
        return Reached(psnr, 9.0, 1.0)

    monkeypatch.setattr(training_runs, "train", train)
    monkeypatch.setattr(training_runs, "RUNS", tmp_path / "runs" / "training.jsonl")
    monkeypatch.setattr(training_runs, "SIZES", (4, 2))
    monkeypatch.setattr(training_runs, "SIDE", 16)
    found = training.findings(full=True, photographs=folder)
    assert len(trained) == len(set(trained))
    for k in (128, 512, 8192):
        tried = found[f"K {k}, 400 steps, one seed"]
        assert tried[DEFAULTS] == {
            f"lr {lr:g}": f"{28 + 1000 * lr:.2f} dB, 9 codes" for lr in (3e-4, 1e-3, 3e-3)
        }
        assert tried["no revival"] == {"lr 0.0003": "", "lr 0.001": "31.00 dB, 9 codes", "lr 0.003": ""}
        for steps, seeds in training.SEEDS.items():
            table = found[f"K {k}, {steps} steps, {'one seed' if seeds == 1 else f'{seeds} seeds'}"]
            assert list(table) == [
                "defaults, lr 0.001",
                COMMAND,
                "random start, no revival, lr 0.001",
                f"{PEER}, decay 0.8, straight-through, lr 0.001",
            ]
            row = {"PSNR": f"{28.5 + seeds / 2:.2f} dB", "perplexity": "9"}
            if seeds > 1:
                row["from, to"] = f"29.00, {28 + seeds}.00"
            assert table["defaults, lr 0.001"] == row
    assert sum(setting.steps == 4000 and setting.seed == 0 for setting in trained) == 3 * 4
    trained.clear()
    assert training.findings(full=True, photographs=folder) == found
    assert not trained
    monkeypatch.setattr(training_runs, "COMMANDS_SOURCES", ("pyproject.toml",))
    training.findings(full=True, photographs=folder)
    assert {setting.layer for setting in trained} == {COMMAND}
    assert training.findings(full=False, photographs=folder / "nowhere") == {}
