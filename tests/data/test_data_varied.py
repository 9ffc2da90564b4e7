"""Images that are varied for training: random crops, and mirror images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sources import pixels, saved
from vqfast.data import load_images


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Seven images of 12x9."""
    return saved(tmp_path / "x.npy", pixels(7, 12, 9))


def test_crops_and_mirror_images_are_cut_by_the_chances_alone(path: Path) -> None:
    images, whole = load_images(path, crop=8, flip=True), np.load(path) / np.float32(255)
    assert images.shape == (1, 8, 8) and "grey 8x8, crops of 9x12" in images.describe()[0]
    numbers = [3, 1, 4, 1, 5]
    central = whole[numbers, 2:10, 0:8]
    np.testing.assert_array_equal(images.batch(numbers)[:, 0], central)
    chances = torch.tensor(
        [[0, 0, 0], [0.99, 0.99, 0.99], [0.5, 0.4, 0.49], [0.2, 0.5, 0.5], [0.79, 0.1, 0.2]]
    ).double()
    corners = [(0, 0), (4, 1), (2, 0), (1, 1), (3, 0)]
    found = images.varied(torch.tensor(numbers), chances)
    for item, number, (top, left), flip in zip(found, numbers, corners, chances[:, 2] < 0.5, strict=True):
        expected = whole[number, top : top + 8, left : left + 8]
        np.testing.assert_array_equal(item[0], expected[:, ::-1] if flip else expected)
    assert images.varied([], torch.empty(0, 3)).shape == images.batch([]).shape == (0, 1, 8, 8)


def test_every_corner_is_as_likely(path: Path) -> None:
    images = load_images(path, crop=8)
    chances = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = images.varied([2] * 2000, chances)
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 10 and counts.min() > 140


def test_a_set_that_is_not_varied_gives_its_images(path: Path) -> None:
    images = load_images(path)
    assert torch.equal(images.varied([3, 1], torch.zeros(2, 3)), images.batch([3, 1]))
    flipped = load_images(path, flip=True)
    chances = torch.tensor([[0, 0, 0.1], [0, 0, 0.9]])
    assert torch.equal(flipped.varied([3, 1], chances)[0], images.batch([3])[0].flip(2))
    assert torch.equal(flipped.varied([3, 1], chances)[1], images.batch([1])[0])


def test_crops_are_other_data_than_resized_images(path: Path) -> None:
    resized, cropped, larger = (load_images(path, **how) for how in ({"size": 8}, {"crop": 8}, {"size": 9}))
    assert len({images.fingerprint for images in (resized, cropped, larger)}) == 3
    assert load_images(path, size=9, crop=8).fingerprint != cropped.fingerprint
    assert load_images(path, crop=8, flip=True).fingerprint == cropped.fingerprint


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"crop": 10}, ValueError, r"crop is 10; want an integer in 1\.\.9, or None"),
        ({"crop": 0}, ValueError, "crop is 0"),
        ({"crop": 8.0}, TypeError, r"crop is 8\.0"),
        ({"flip": 1}, TypeError, "flip is 1; want True or False"),
    ],
)
def test_bad_ways_to_vary(path: Path, how: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_images(path, **how)
