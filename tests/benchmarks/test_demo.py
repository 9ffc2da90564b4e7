"""The record of the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from vqfast.pipeline.ranks import Ranks


def test_the_record_has_the_first_seed_and_what_each_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_demo(folder: Path, ranks: Ranks, *, seed: int) -> dict[str, Any]:
        folder.mkdir(parents=True)
        (folder / "timings.json").write_text('{"seconds": 60.0}')
        (folder / "samples.png").write_bytes(b"picture %d" % seed)
        agrees = 0.97 + seed / 1000
        return {"classifier_agrees_with_requested_label": agrees, "reconstruction_held_out": {"psnr": 37.0}}

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setattr(demo, "RUNS", tmp_path / "runs")
    demo.record(tmp_path)
    found = json.loads((tmp_path / "demo-digits.json").read_text())
    assert found["classifier_agrees_with_requested_label"] == 0.97 and found["seconds"] == 60
    agrees = [seed["classifier_agrees_with_requested_label"] for seed in found["seeds"]]
    assert agrees == [0.97, 0.971, 0.972]
    assert (tmp_path / "demo-digits.png").read_bytes() == b"picture 0"
