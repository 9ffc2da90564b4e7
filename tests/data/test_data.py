"""The digits, labels, sizes and channels, batches, splits and fingerprints of images from anywhere."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.sources import folder, idx, pixels, same, saved
from vqfast.data import Images, load_images
from vqfast.data.images import arrays

# digits


def test_digits() -> None:
    digits = load_images("digits")
    assert (len(digits), digits.shape, digits.num_classes) == (1797, (1, 32, 32), 10)
    assert digits.labels.dtype == np.int64 and np.bincount(digits.labels).min() > 170
    assert digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images = digits.batch(range(1797))
    assert images.min() == 0 and images.max() == 1
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images).float() / 16
    averaged = torch.nn.functional.avg_pool2d(images, 4)[:, 0]
    alike = [np.corrcoef(pair)[0, 1] for pair in zip(averaged.flatten(1), small.flatten(1), strict=True)]
    assert min(alike) > 0.95  # ink bright on dark, the right way up, in order


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_digits_of_other_sizes(size: int) -> None:
    assert load_images("digits", size=size, channels=3).batch([5]).shape == (1, 3, size, size)


def test_digits_at_their_own_size_are_exact() -> None:
    from sklearn.datasets import load_digits

    images = load_images("digits", size=8).batch([0, 7])[:, 0].numpy()
    np.testing.assert_allclose(images, load_digits().images[[0, 7]] / 16, atol=0.5 / 255 + 1e-6)


# labels


def test_labels_given(tmp_path: Path) -> None:
    source = tmp_path / "x.npz"
    np.savez(source, x=pixels(3, 4, 4), y=np.array([0.5, 1, 2]))  # these are not even looked at
    (tmp_path / "idx").write_bytes(idx(np.array([1, 4, 0])))
    (tmp_path / "idx.gz").write_bytes(gzip.compress(idx(np.array([1, 4, 0]))))
    saved(tmp_path / "y.npy", np.array([1, 4, 0], np.uint16))
    for name in ("idx", "idx.gz", "y.npy"):
        images = load_images(str(source), labels=str(tmp_path / name))
        assert images.labels.tolist() == [1, 4, 0] and images.labels.dtype == np.int64
        assert images.num_classes == 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), r"labels of shape .*; want \(3,\)"),
        (np.arange(2), r"want \(3,\), one for each image"),
        (np.zeros((3, 1), int), r"want \(3,\), one for each image"),
        (np.zeros(3), "labels of dtype float64; want integers"),
        (np.zeros(3, bool), "labels of dtype bool; want integers"),
        (np.array([0, -1, 1]), "the label -1; want 0 or more"),
        (np.array([0, 1, 2**64 - 1], np.uint64), "the label -1; want 0"),
        (np.array([None] * 3), "Python objects"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    source = saved(tmp_path / "x.npy", pixels(3, 4, 4))
    with pytest.raises(ValueError, match=rf"y\.npy( has|:) .*{message}"):
        load_images(source, labels=saved(tmp_path / "y.npy", labels))
    np.savez(tmp_path / "x.npz", x=pixels(3, 4, 4), y=labels)
    with pytest.raises(ValueError, match=r"x\.npz( has|:) "):
        load_images(str(tmp_path / "x.npz"))


# size and channels


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_size_keeps_the_central_square(tmp_path: Path, dtype: type) -> None:
    wide = np.zeros((2, 8, 16, 3), dtype)  # the left and right quarters are cut off
    wide[:, :, 4:12] = 255 if dtype is np.uint8 else 1.0
    wide[1] = wide[1].max() - wide[1]
    high = wide.transpose(0, 2, 1, 3)
    for array in (wide, high):
        images = load_images(saved(tmp_path / "x.npy", array), size=4)
        assert images.shape == (3, 4, 4)
        found = images.batch([1, 0])
        assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
        assert torch.all(found[1, :, 1:3, 1:3] == 1) and torch.all(found[0, :, 1:3, 1:3] == 0)
        assert found[1].mean() > 0.9 and found[0].mean() < 0.1
    assert same(
        load_images(saved(tmp_path / "x.npy", pixels(2, 4, 4)), size=4), np.load(tmp_path / "x.npy")[:, None]
    )


def test_resizing_agrees_between_a_folder_and_an_array(tmp_path: Path) -> None:
    array = pixels(2, 9, 7, 3)
    in_folder = load_images(folder(tmp_path, a_png=array[0], b_png=array[1]), size=5)
    in_array = load_images(saved(tmp_path / "x.npy", array), size=5)
    assert torch.equal(in_folder.batch([0, 1]), in_array.batch([0, 1]))


def test_channels_of_arrays(tmp_path: Path) -> None:
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    assert load_images(saved(tmp_path / "w.npy", white), channels=1).batch([0]).max() == 1
    grey = pixels(2, 4, 4)
    assert same(load_images(saved(tmp_path / "g.npy", grey), channels=3), np.stack([grey] * 3, axis=1))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"size": 0}, ValueError, "size is 0; want an integer in 1..2147483647, or None"),
        ({"size": -3}, ValueError, "size"),
        ({"size": 8.0}, TypeError, "size is 8.0; want an integer in 1..2147483647, or None"),
        ({"size": True}, TypeError, "size"),
        ({"channels": 2}, ValueError, "channels is 2; want 1 or 3"),
        ({"channels": "3"}, TypeError, "channels"),
        ({"data": 7}, TypeError, "data is a int; want a path"),
        ({"data": np.zeros((2, 4, 4))}, TypeError, "data is a ndarray; want a path"),
        ({"data": "/no/such"}, FileNotFoundError, "data is '/no/such'; no such file or folder"),
        ({"labels": "/no/such.npy"}, FileNotFoundError, "labels is .*; no such"),
        ({"labels": "/"}, ValueError, "/: cannot read IDX file"),
    ],
)
def test_bad_arguments(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_images(**{"data": "digits"} | kwargs)


# batches, splits, fingerprints


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Fifty images of one pixel each, whose value is their row."""
    path = tmp_path_factory.mktemp("fifty") / "x.npz"
    np.savez(path, x=np.arange(50, dtype=np.uint8)[:, None, None], y=np.arange(50))
    return load_images(str(path))


def values(images: Images) -> list[int]:
    return (images.batch(range(len(images))).flatten() * 255).round().int().tolist()


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 49), max_size=20))
def test_batch_takes_any_numbers(fifty: Images, numbers: list[int]) -> None:
    for form in (
        numbers,
        np.array(numbers, np.int32),
        torch.tensor(numbers, dtype=torch.int64),
        tuple(numbers),
    ):
        found = fifty.batch(form)
        assert found.shape == (len(numbers), 1, 1, 1) and found.dtype == torch.float32
        assert (found.flatten() * 255).round().int().tolist() == numbers


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ([50], ValueError),
        ([0, -1], ValueError),
        ([0.0], TypeError),
        ([True], TypeError),
        (3, TypeError),
        ([[0]], TypeError),
        (slice(3), TypeError),
        (["0"], TypeError),
        (None, TypeError),
    ],
)
def test_bad_numbers(fifty: Images, numbers: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"numbers (is|has) .*; want"):
        fifty.batch(numbers)


def test_batches_do_not_share_memory_with_the_data(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "x.npy", np.zeros((2, 3, 3), np.float32)))
    images.batch([0]).fill_(1)
    assert images.batch([0]).max() == 0


@settings(deadline=None)
@given(val=st.floats(0.01, 0.99), seed=st.integers(0, 2**40))
def test_split(fifty: Images, val: float, seed: int) -> None:
    held_out = round(val * 50)
    if held_out in (0, 50):
        with pytest.raises(ValueError, match="val"):
            fifty.split(val, seed=seed)
        return
    train, held = fifty.split(val, seed=seed)
    assert (len(train), len(held)) == (50 - held_out, held_out)
    assert sorted(values(train) + values(held)) == list(range(50))
    for part, again in zip((train, held), fifty.split(val, seed=seed), strict=True):
        assert part.labels.tolist() == values(part) == values(again)
        assert part.fingerprint == again.fingerprint != fifty.fingerprint
        assert part.num_classes == 50 and part.shape == fifty.shape
    assert len(fifty) == len(fifty.labels) == 50


def test_split_is_random_pinned_and_nests(fifty: Images) -> None:
    held = {tuple(values(fifty.split(0.2, seed=seed)[1])) for seed in range(20)}
    assert len(held) == 20
    assert values(fifty.split(0.1, seed=0)[1]) == [2, 3, 11, 13, 20]  # must never change: runs are resumed
    train, _ = fifty.split(0.2, seed=1)
    first, second = train.split(0.5, seed=2)
    assert sorted(values(first) + values(second)) == values(train)


@pytest.mark.parametrize(
    ("val", "seed", "error"),
    [
        (0, 0, ValueError),
        (1, 0, ValueError),
        (-0.1, 0, ValueError),
        (float("nan"), 0, ValueError),
        (0.001, 0, ValueError),
        (0.999, 0, ValueError),
        ("0.1", 0, TypeError),
        (0.1, -1, ValueError),
        (0.1, 0.5, TypeError),
    ],
)
def test_bad_splits(fifty: Images, val: float, seed: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed" if seed else "val"):
        fifty.split(val, seed=seed)


def test_fingerprint_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = pixels(6, 4, 4)
    changed = array.copy()
    changed[3, 2, 2] ^= 1
    path = tmp_path / "x.npy"

    def fingerprint(array: np.ndarray, **kwargs: int) -> str:
        return load_images(saved(path, array), **kwargs).fingerprint

    original = fingerprint(array)
    assert re.fullmatch("[0-9a-f]{32}", original) and fingerprint(array) == original
    np.savez(tmp_path / "x.npz", images=array)
    assert load_images(str(tmp_path / "x.npz")).fingerprint == original
    np.savez(tmp_path / "x.npz", images=array, labels=np.arange(6))
    variants = [fingerprint(changed), fingerprint(array[:5]), fingerprint(array.reshape(6, 2, 8))]
    variants += [fingerprint(array, size=2), fingerprint(array, channels=3), fingerprint(array[::-1])]
    variants.append(load_images(str(tmp_path / "x.npz")).fingerprint)
    assert len({original, *variants}) == 8

    monkeypatch.setattr(arrays, "BLOCK", array[:2].nbytes)  # read in parts
    assert fingerprint(array) == original


def test_fingerprint_of_folders(tmp_path: Path) -> None:
    source = folder(tmp_path, a_bmp=pixels(4, 4), b_bmp=pixels(4, 4))
    original = load_images(source).fingerprint
    assert load_images(source).fingerprint == original
    (tmp_path / "b.bmp").rename(tmp_path / "c.bmp")
    renamed = load_images(source).fingerprint
    with (tmp_path / "c.bmp").open("ab") as file:
        file.write(b"\0")
    assert len({original, renamed, load_images(source).fingerprint}) == 3
