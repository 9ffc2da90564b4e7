"""Images in NumPy's files and MNIST's."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sources import RNG, idx, pixels, same, saved
from vqfast.data import load_images

# arrays


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_layouts(tmp_path: Path, channels: int, suffix: str) -> None:
    first = pixels(5, channels, 4, 6)
    for layout in (first, first.transpose(0, 2, 3, 1), *([first[:, 0]] if channels == 1 else [])):
        path = tmp_path / f"images{suffix}"
        np.save(path, layout) if suffix == ".npy" else np.savez(path, images=layout)
        images = load_images(str(path))
        assert images.shape == (channels, 4, 6) and images.labels is None and images.num_classes is None
        assert same(images, first)


def test_where_both_layouts_fit_channels_are_last(tmp_path: Path) -> None:
    array = pixels(2, 3, 5, 1)
    assert same(load_images(saved(tmp_path / "x.npy", array)), array.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_float_arrays(tmp_path: Path, dtype: str) -> None:
    array = RNG.random((3, 4, 5)).astype(dtype)
    images = load_images(saved(tmp_path / "x.npy", array)).batch([2, 0, 2])
    assert torch.equal(images[:, 0], torch.from_numpy(array[[2, 0, 2]].astype(np.float32)))


@pytest.mark.parametrize("bad", [1.001, -0.001, np.nan, np.inf, -np.inf, 255.0, 1e300])
def test_floats_outside_0_to_1(tmp_path: Path, bad: float) -> None:
    array = np.full((4, 3, 3), 0.5)
    array[2, 1, 1] = bad
    images = load_images(saved(tmp_path / "x.npy", array), size=2)  # memory-mapped: found on reading
    assert images.batch([0, 1, 3]).shape == (3, 1, 2, 2)
    with pytest.raises(
        ValueError, match=rf"x\.npy has {re.escape(str(bad))} in image 2; want floats in \[0, 1\]"
    ):
        images.batch([3, 2])
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(ValueError, match=r"x\.npz has .* in image 2; want floats in \[0, 1\]"):
        load_images(str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), "want at least one image"),
        (np.zeros((3, 0, 4), np.uint8), "want at least one image"),
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), "shape"),
        (np.zeros((2, 5, 5, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 4, 4), complex), "dtype complex"),
        (np.full((2, 4, 4), None), "[Oo]bject"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}( has|:) .*{message}") as caught:
        load_images(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["images", "x", "data", "x_train", "arr_0", "anything"])
@pytest.mark.parametrize("label_key", ["labels", "y", "y_train"])
def test_npz_keys(tmp_path: Path, key: str, label_key: str) -> None:
    array = pixels(3, 4, 4)
    np.savez_compressed(tmp_path / "x.npz", **{key: array, label_key: [2, 0, 2], "other": np.eye(3)})
    images = load_images(str(tmp_path / "x.npz"))
    assert same(images, array[:, None])
    assert images.labels.tolist() == [2, 0, 2] and images.labels.dtype == np.int64 and images.num_classes == 3


def test_npz_with_no_clear_choice(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=pixels(2, 4, 4), b=pixels(2, 4, 4))
    np.savez(tmp_path / "none.npz", a=pixels(2, 4))
    for name in ("two", "none"):
        with pytest.raises(ValueError, match="want images under one of"):
            load_images(str(tmp_path / f"{name}.npz"))


def test_broken_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pixels(9, 8, 8))
    np.savez(tmp_path / "x.npz", x=pixels(9, 8, 8))
    npy, npz = (tmp_path / "x.npy").read_bytes(), (tmp_path / "x.npz").read_bytes()
    contents = {"cut.npy": npy[:-1], "head.npy": npy[:20], "empty.npy": b"", "junk.npy": b"junk" * 99}
    contents |= {"cut.npz": npz[:-9], "empty.npz": b"", "npy.npz": npy, "npz.npy": npz}
    contents["flip.npz"] = npz[:200] + bytes([npz[200] ^ 255]) + npz[201:]  # CRC
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot read"):
            load_images(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("images", b"not an array")
    with pytest.raises(ValueError, match=r"raw\.npz has .*; want"):
        load_images(str(tmp_path / "raw.npz"))


# IDX


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("label_suffix", ["", ".gz", None])
@pytest.mark.parametrize("style", ["train-images-idx3-ubyte", "t10k-images.idx3-ubyte"])
def test_idx(tmp_path: Path, suffix: str, label_suffix: str | None, style: str) -> None:
    array, labels = pixels(4, 5, 6), np.array([7, 0, 3, 3])
    source = tmp_path / (style + suffix)
    source.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    if label_suffix is not None:
        beside = tmp_path / (style.replace("images", "labels").replace("3", "1") + label_suffix)
        beside.write_bytes(gzip.compress(idx(labels)) if label_suffix else idx(labels))
    images = load_images(str(source))
    assert same(images, array[:, None])
    assert images.labels is None if label_suffix is None else images.labels.tolist() == [7, 0, 3, 3]


BROKEN_IDX = {
    "nothing": b"",
    "two bytes": b"\0\0",
    "no sizes": b"\0\0\x08\x03\0\0",
    "a byte too few": idx(pixels(2, 3, 3))[:-1],
    "a byte too many": idx(pixels(2, 3, 3)) + b"\0",
    "two axes": idx(pixels(2, 3)),
    "float32": b"\0\0\x0d\x03" + idx(pixels(2, 3, 3))[4:],
    "huge sizes": struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    "gzip cut off": gzip.compress(idx(pixels(2, 30, 30)))[:-100],
    "gzip of text": gzip.compress(b"text"),
    "no gzip": b"\x1f\x8bjunk",
    "PNG": b"\x89PNG\r\n",
}


# By their names: gzip writes the second into its head, and all processes that run tests must find the same.
@pytest.mark.parametrize("kind", BROKEN_IDX)
def test_broken_idx(tmp_path: Path, kind: str) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(BROKEN_IDX[kind])
    with pytest.raises(ValueError, match="images-idx3-ubyte: cannot read IDX file: "):
        load_images(str(tmp_path / "images-idx3-ubyte"))


def test_idx_without_images(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(pixels(0, 4, 4)))
    with pytest.raises(ValueError, match=r"want at least one image|has no image in it"):
        load_images(str(tmp_path / "x"))
