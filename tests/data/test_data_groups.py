"""Images that belong together are on one side of the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import pixels, saved
from vqfast.data import Images, load_images
from vqfast.pipeline import Run, Training, reopen_parts, train_vqvae

CROPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops of each of ten photos; a crop has the number of its photo as its grey."""
    root = tmp_path_factory.mktemp("crops")
    for photo in range(10):
        for crop in range(CROPS):
            Image.fromarray(np.full((8, 8), photo, np.uint8)).save(root / f"p{photo}_crop{crop}.png")
    return root


def photos(images: Images) -> list[int]:
    greys = images.batch(range(len(images)))[:, 0, 0, 0] * 255
    return greys.round().int().tolist()


@pytest.mark.parametrize("group", ["(.*)_crop", "p[0-9]+", "^(p.)(_crop.)"])
@pytest.mark.parametrize(("val", "held_out"), [(0.2, 2), (0.33, 3), (0.04, 1)])
def test_crops_of_a_photo_stay_together(folder: Path, group: str, val: float, held_out: int) -> None:
    images = load_images(folder)
    splits = {seed: images.split(val, seed=seed, group=group) for seed in range(4)}
    for train, held in splits.values():
        assert not set(photos(train)) & set(photos(held))
        assert len(set(photos(held))) == held_out and len(held) == CROPS * held_out
        assert len(train) + len(held) == len(images)
    assert len({tuple(photos(held)) for _, held in splits.values()}) > 1
    again = images.split(val, seed=0, group=group)[1]
    assert again.fingerprint == splits[0][1].fingerprint


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(", r"group is '\('; want a regular expression: "),
        ("p1", "group is 'p1', which isn't found in p0_crop0.png"),
        ("(p)", r"group is '\(p\)', which leaves the training part empty; want smaller groups"),
    ],
)
def test_bad_groups(folder: Path, group: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_images(folder).split(0.2, seed=0, group=group)


def test_arrays_have_no_groups(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "x.npy", pixels(10, 8, 8)))
    with pytest.raises(ValueError, match=r"group is 'x', but .*x\.npy is an array; want a folder of images"):
        images.split(0.2, seed=0, group="x")


def test_a_run_remembers_its_groups(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    small = {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4}
    short = Training(steps=1)
    train_vqvae(run, folder, val=0.2, group="(.*)_crop", model_options=small, training=short)
    parts = reopen_parts(run)
    assert not {*photos(parts["train"])} & {*photos(parts["held-out"])}
    with pytest.raises(ValueError, match=r"data.group was '\(\.\*\)_crop', now None"):
        train_vqvae(run, folder, val=0.2, model_options=small, training=short)
