"""The suite ``training`` in small: crops, runs that are kept, and its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import photos, training
from benchmarks.core import AbsentError
from benchmarks.training import DEFAULTS, PEER, Reached, Setting


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


@pytest.mark.parametrize("name", training.LAYERS)
def test_every_layer_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith(PEER):
        pytest.importorskip("vector_quantize_pytorch")
    monkeypatch.setattr(training, "HIDDEN", 8)
    reached = training.train(
        Setting(name, 8, 1e-3, 2, 0), (torch.rand(20, 3, 16, 16), torch.rand(5, 3, 16, 16))
    )
    assert 0 < reached.psnr < 40 and 1 <= reached.perplexity <= 8


def test_finished_runs_are_kept_and_tables_name_the_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train(setting: Setting, crops: tuple[torch.Tensor, torch.Tensor]) -> Reached:
        trained.append(setting)
        return Reached(20 + 1000 * setting.lr + len(setting.layer) + setting.seed, 9.0, 1.0)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "RUNS", tmp_path / "runs" / "training.jsonl")
    monkeypatch.setattr(training, "SIZES", (4, 2))
    monkeypatch.setattr(training, "SIDE", 16)
    found = training.findings(full=True, photographs=folder)
    assert len(trained) == len(set(trained))
    for k in (128, 512, 8192):
        assert found[f"K {k}, 400 steps, one seed"][DEFAULTS]["lr 0.001"] == "29.00 dB, 9 codes"
        for steps in (400, 4000):
            table = found[f"K {k}, {steps} steps, three seeds"]
            assert list(table) == [
                "defaults, lr 0.003",
                "random start, no revival, lr 0.003",
                f"{PEER}, decay 0.8, straight-through, lr 0.003",
            ]
            assert table["defaults, lr 0.003"] == {
                "PSNR": "32.00 dB",
                "from, to": "31.00, 33.00",
                "perplexity": "9",
            }
    trained.clear()
    assert training.findings(full=True, photographs=folder) == found
    assert not trained
    assert training.findings(full=False, photographs=folder / "nowhere") == {}
