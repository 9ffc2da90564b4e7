"""Curves for TensorBoard, with a writer in TensorBoard's place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.trained import train
from vqfast.pipeline import Run
from vqfast.pipeline.logs import csv_of, log_to
from vqfast.saving.storage import read_json


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is written for TensorBoard."""
    found: list[Any] = []
    module: Any = ModuleType("torch.utils.tensorboard")

    def writer(folder: Path, *, purge_step: int) -> SimpleNamespace:
        found.append((folder, purge_step))
        return SimpleNamespace(add_scalar=lambda *scalar: found.append(scalar), flush=lambda: None)

    module.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return found


def test_each_figure_is_logged_once(tmp_path: Path, events: list[Any]) -> None:
    log = log_to(tmp_path, "vqvae", tmp_path / "logs")
    history: dict[str, list[float | None]] = {"step": [0], "loss": [2.0], "held_out_psnr": [9.0]}
    log(history)
    for name, value in (("step", 5), ("loss", 1.0), ("held_out_psnr", None)):
        history[name].append(value)
    log(history)
    assert events[0] == (tmp_path / "logs" / "vqvae", 0)
    assert sorted(events[1:]) == [("held_out_psnr", 9.0, 0), ("loss", 1.0, 5), ("loss", 2.0, 0)]
    assert (tmp_path / "vqvae.csv").read_bytes() == csv_of(history)


def test_a_training_is_logged(data: Path, tmp_path: Path, events: list[Any]) -> None:
    run = Run(tmp_path / "run", create=True)
    train(run, data, tensorboard=tmp_path / "logs")
    history = read_json(run.folder / "vqvae.history.json")
    assert [(value, step) for name, value, step in events[1:] if name == "loss"] == list(
        zip(history["loss"], history["step"], strict=True)
    )
    del events[:]
    train(run, data)  # with and without it, the run is the same
    assert not events
