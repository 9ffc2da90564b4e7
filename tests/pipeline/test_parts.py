"""The data of a run: named in run.json, split in the same way, refused when it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.trained import MODEL, files, train
from vqfast.data import load_images
from vqfast.pipeline import (
    Run,
    Training,
    load_model,
    measure_reconstruction,
    modality_of,
    reopen_parts,
    train_vqvae,
)
from vqfast.pipeline.parts import HELD_OUT, TRAIN, load_like_run
from vqfast.saving.storage import read_json

NOTE = {"modality": "images", "path": "digits", "val": 0.1, "seed": 0}


@pytest.mark.parametrize(
    "note", [None, [], "x", {}, {"path": "digits"}, {**NOTE, "modality": "smells"}, {**NOTE, "modality": []}]
)
def test_a_run_that_does_not_name_its_data(tmp_path: Path, note: Any) -> None:
    run = Run(tmp_path, create=True)
    run.begin("vqvae", {} if note is None else {"data": note})
    for function in (reopen_parts, modality_of):
        with pytest.raises(
            ValueError, match=r"run\.json has no data with modality, path, seed, val in vqvae"
        ):
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


def test_a_validation_set_of_its_own(data: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 256, (9, 8, 12, 3), dtype=np.uint8)
    for number, image in enumerate(x):
        (tmp_path / "val" / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "val" / f"{number % 3}" / f"{number}.png")
    run = Run(tmp_path / "run", create=True)
    train(run, data, val=tmp_path / "val", val_every=5)
    assert run.settings("vqvae")["data"]["val"] == str(tmp_path / "val")
    parts = reopen_parts(run)
    assert [len(part) for part in parts.values()] == [60, 9]
    assert parts[HELD_OUT].shape == parts[TRAIN].shape == (1, 8, 12)  # read as the data: grey
    assert parts[HELD_OUT].fingerprint == load_images(tmp_path / "val", channels=1).fingerprint
    assert parts[HELD_OUT].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    figure = read_json(run.folder / "vqvae.history.json")["held_out_mse"]
    model = load_model(run.folder, "vqvae")
    assert measure_reconstruction(model, parts[HELD_OUT])["mse"] == pytest.approx(min(figure))
    (tmp_path / "val" / "0" / "0.png").unlink()
    with pytest.raises(ValueError, match="has changed since the run was trained on it"):
        reopen_parts(run)


def test_bad_validation_sets(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    np.save(tmp_path / "small.npy", np.zeros((5, 8, 8), np.uint8))
    plain = np.zeros((5, 8, 12), np.uint8)
    np.save(tmp_path / "plain.npy", plain)
    np.savez(tmp_path / "more.npz", images=plain, labels=np.arange(5))
    for name, message in (
        ("small.npy", r"val has items of shape \(1, 8, 8\); want \(1, 8, 12\), as the data"),
        ("plain.npy", "which has no labels; want labels, as the data has them"),
        ("more.npz", r"val has the label 4; want 0\.\.2, as the data has them"),
        ("nothing", "no such file or folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(run, data, val=tmp_path / name)
    with pytest.raises(ValueError, match="group is 'x'; want None where val is a path: nothing is split"):
        train_vqvae(run, data / "x.npy", val=tmp_path / "plain.npy", group="x")


def test_digits_may_be_the_validation_set(tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    reading = {"size": 8}
    train_vqvae(run, "digits", reading=reading, val="digits", model_options=MODEL, training=Training(steps=1))
    parts = reopen_parts(run)
    assert parts[TRAIN].fingerprint == parts[HELD_OUT].fingerprint


def test_crops_and_flips_go_with_the_run(data: Path, tmp_path: Path) -> None:
    """The other steps take central crops, of other data too."""
    run = Run(tmp_path / "run", create=True)
    reading = {"crop": 8, "flip": True}
    model = train_vqvae(run, data / "x.npy", reading=reading, model_options=MODEL, training=Training(steps=2))
    assert run.settings("vqvae")["data"].items() >= reading.items()
    parts = reopen_parts(run)
    whole = torch.from_numpy(np.load(data / "x.npy")[:, None]) / np.float32(255)
    other = load_like_run(run, model, data / "x.npy")
    assert torch.equal(other.batch(range(60)), whole[..., 2:10])
    assert {part.shape for part in parts.values()} == {other.shape} == {(1, 8, 8)}
    with pytest.raises(ValueError, match="crop is 6; want a multiple of 4, the model's stride"):
        train_vqvae(
            Run(tmp_path / "b", create=True), data / "x.npy", reading={"crop": 6}, model_options=MODEL
        )
