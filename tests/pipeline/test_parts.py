"""The data of a run: named in run.json, split in the same way, refused when it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.trained import files, train
from vqfast.data import load_images
from vqfast.pipeline import Run, modality_of, reopen_parts
from vqfast.pipeline.parts import HELD_OUT, TRAIN

NOTE = {"modality": "images", "path": "digits", "holdout": 0.1, "seed": 0}


@pytest.mark.parametrize(
    "note", [None, [], "x", {}, {"path": "digits"}, {**NOTE, "modality": "smells"}, {**NOTE, "modality": []}]
)
def test_a_run_that_does_not_name_its_data(tmp_path: Path, note: Any) -> None:
    run = Run(tmp_path, create=True)
    run.begin("vqvae", {} if note is None else {"data": note})
    for function in (reopen_parts, modality_of):
        with pytest.raises(ValueError, match=r"run\.json has no data with holdout, modality, .* in vqvae"):
            function(run)


def test_data_is_that_of_the_training(trained: Run, data: Path) -> None:
    parts = reopen_parts(trained)
    train, held_out = load_images(data / "x.npy", labels=data / "y.npy").split(0.25, seed=0)
    assert list(parts) == [TRAIN, HELD_OUT]
    assert [len(part) for part in parts.values()] == [45, 15]
    assert parts["train"].fingerprint == train.fingerprint
    assert parts["held-out"].fingerprint == held_out.fingerprint
    assert modality_of(trained).item == "image"


def test_changed_data_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = Run(tmp_path / "run", create=True)
    with pytest.raises(FileNotFoundError, match="holds no trained VQ-VAE"):
        reopen_parts(run)
    train(run, tmp_path, labels=False, steps=1)
    x[3, 3, 3] ^= 1
    np.save(tmp_path / "x.npy", x)
    before = files(run.folder)
    with pytest.raises(ValueError, match=r"x\.npy has changed since the run was trained on it"):
        reopen_parts(run)
    with pytest.raises(ValueError, match=r"x\.npy has changed since the run was trained on it"):
        train(run, tmp_path, labels=False, steps=1)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.npy.; no such file or folder"):
        reopen_parts(run)
    assert files(run.folder) == before
