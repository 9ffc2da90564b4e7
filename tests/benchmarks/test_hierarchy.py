"""The suite ``hierarchy`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import hierarchy


def test_each_level_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{number}.png")
    monkeypatch.setattr(hierarchy, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(hierarchy, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(hierarchy, "QUICK", hierarchy.Size(crops=6, vqvae_steps=1, prior_steps=1))
    monkeypatch.setattr(hierarchy, "MODEL", {"hidden_channels": 4, "num_embeddings": 8, "embedding_dim": 2})
    monkeypatch.setattr(hierarchy, "PRIOR", {"channels": 4, "num_layers": 1, "head_channels": 4})
    reconstructions, bits = hierarchy.findings(full=False, photographs=tmp_path / "photographs").values()
    assert [line["codes"] for line in reconstructions.values()] == ["64", "64", "320"]
    assert list(bits) == ["top", "bottom, given the top", "bottom, without the top"]
    assert all(0 < float(line["bits a code"]) < 6 for line in bits.values())
    with Image.open(tmp_path / "results" / "hierarchy-photographs.png") as picture:
        assert picture.width > 6 * hierarchy.SIDE and picture.height > 5 * hierarchy.SIDE
    folder = tmp_path / "runs" / "quick" / "run"
    before = (folder / "bottom-alone.safetensors").stat().st_mtime_ns
    hierarchy.findings(full=False, photographs=tmp_path / "photographs")  # goes on where it was
    assert (folder / "bottom-alone.safetensors").stat().st_mtime_ns == before
    (tmp_path / "empty").mkdir()
    assert hierarchy.findings(full=False, photographs=tmp_path / "empty") == {}
    assert "hierarchy: 0 photographs" in capsys.readouterr().out
