from __future__ import annotations

import gzip
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqfast.pipeline import data
from vqfast.pipeline.data import Images, load_images

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def same(images: Images, expected: np.ndarray) -> bool:
    """Whether all images equal uint8 (N, C, H, W)."""
    found = images.batch(range(len(images)))
    assert found.dtype == torch.float32 and found.shape == expected.shape == (len(images), *images.shape)
    return torch.equal(found, torch.from_numpy(expected.copy()).float() / 255)


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
        (np.zeros((0, 4, 4), np.uint8), "want some images"),
        (np.zeros((3, 0, 4), np.uint8), "want some images"),
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), "shape"),
        (np.zeros((2, 4, 5, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((2, 4, 4), np.int64), "int64; want images of uint8 or floats"),
        (np.zeros((2, 4, 4), bool), "dtype bool"),
        (np.zeros((2, 4, 4), np.uint16), "dtype uint16"),
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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\0\0\x08\x03\0\0",
        idx(pixels(2, 3, 3))[:-1],
        idx(pixels(2, 3, 3)) + b"\0",
        idx(pixels(2, 3)),
        b"\0\0\x0d\x03" + idx(pixels(2, 3, 3))[4:],
        struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        gzip.compress(idx(pixels(2, 30, 30)))[:-100],
        gzip.compress(b"text"),
        b"\x1f\x8bjunk",
        b"\x89PNG\r\n",
    ],
)
def test_broken_idx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="images-idx3-ubyte: cannot read IDX file: "):
        load_images(str(tmp_path / "images-idx3-ubyte"))


def test_idx_without_images(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(pixels(0, 4, 4)))
    with pytest.raises(ValueError, match=r"want some images|has no image in it"):
        load_images(str(tmp_path / "x"))


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
        (np.arange(4), "labels of shape .*; want 3"),
        (np.arange(2), "want 3, one an image"),
        (np.zeros((3, 1), int), "want 3, one an image"),
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


# folders


def folder(root: Path, **files: np.ndarray) -> str:
    """Writes images losslessly; `__` in a name stands for `/` and its last `_` for `.`."""
    for name, array in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return str(root)


def test_class_folders(tmp_path: Path) -> None:
    arrays = {f"{c}__{i}_png": pixels(4, 6, 3) for c in ("dog", "cat__deep") for i in (1, 0)}
    arrays["ant__z_BMP"] = pixels(4, 6, 3)
    images = load_images(folder(tmp_path, **arrays))
    (tmp_path / "dog" / "readme.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    (tmp_path / "dog" / "._0.png").write_bytes(b"")  # as macOS leaves them
    again = load_images(str(tmp_path))
    order = ["ant__z_BMP", "cat__deep__0_png", "cat__deep__1_png", "dog__0_png", "dog__1_png"]
    for found in (images, again):
        assert found.labels.tolist() == [0, 1, 1, 2, 2] and found.num_classes == 3
        assert found.labels.dtype == np.int64
        assert same(found, np.stack([arrays[name].transpose(2, 0, 1) for name in order]))
    assert images.fingerprint == again.fingerprint


def test_images_outside_sub_folders_are_not_labelled(tmp_path: Path) -> None:
    source = folder(tmp_path, a__0_png=pixels(4, 4), b__0_png=pixels(4, 4), top_png=pixels(4, 4))
    assert load_images(source).labels is None
    labels = saved(tmp_path / "y.npy", np.array([3, 1, 2]))
    assert load_images(source, labels=labels).labels.tolist() == [3, 1, 2]


@pytest.mark.parametrize("suffix", data.SUFFIXES)
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"x{suffix.upper()}")
    images = load_images(str(tmp_path), channels=3).batch([0])
    np.testing.assert_allclose(images[0, :, 4, 4], [1, 0, 0], atol=0.03)


def test_modes(tmp_path: Path) -> None:
    grey = pixels(4, 4)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey > 127).save(tmp_path / "1.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "2.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 255).save(tmp_path / "3.png")
    all_grey = np.stack([grey, (grey > 127) * np.uint8(255), grey, grey])[:, None]
    assert same(load_images(str(tmp_path)), all_grey)
    assert same(load_images(str(tmp_path), channels=3), all_grey.repeat(3, axis=1))

    rgba = pixels(4, 4, 4)
    Image.fromarray(rgba).save(tmp_path / "4.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    palette.save(tmp_path / "5.png", transparency=bytes(range(16)))  # Pillow warns of these
    mixed = [*all_grey.repeat(3, axis=1), rgba[..., :3].transpose(2, 0, 1)]
    mixed.append(np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert same(load_images(str(tmp_path)), np.stack(mixed))

    one = load_images(str(tmp_path), channels=1).batch([4, 0])
    luma = (rgba[..., :3] @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(one[0, 0], luma, atol=1e-5)
    np.testing.assert_allclose(one[1, 0], grey / 255, atol=1e-5)
    assert one.max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_files_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff: cannot read image: it has 32 bits"):
        load_images(str(tmp_path))


def test_unequal_sizes(tmp_path: Path) -> None:
    source = folder(tmp_path, a_png=pixels(4, 6), b_png=pixels(4, 6), c_png=pixels(6, 4))
    with pytest.raises(ValueError, match=r"a\.png is 6x4, c\.png is 4x6; --size"):
        load_images(source)
    images = load_images(source, size=5)
    assert images.shape == (1, 5, 5) and images.batch([2, 0]).shape == (2, 1, 5, 5)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"want some images|has no image in it"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.webp", "x.tif", "x.bmp"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    Image.fromarray(pixels(64, 64, 3)).save(tmp_path / "0.png")
    Image.fromarray(pixels(64, 64, 3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}: cannot read image: ") as caught:  # at the latest in batch
        load_images(str(tmp_path)).batch([0, 1])
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_bytes(content[:6])
    with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
        load_images(str(tmp_path))


def test_a_truncated_png_or_jpeg_spoils_only_its_own_batches(tmp_path: Path) -> None:
    good = pixels(64, 64)
    folder(tmp_path, a_png=good, b_png=good)
    Image.fromarray(good).save(tmp_path / "c.jpg")
    for name in ("b.png", "c.jpg"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    images = load_images(str(tmp_path))
    assert images.batch([0]).shape == (1, 1, 64, 64)
    for row, name in ((1, "b.png"), (2, "c.jpg")):
        with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
            images.batch([0, row])


def test_files_that_change_after_loading(tmp_path: Path) -> None:
    images = load_images(folder(tmp_path, a_png=pixels(4, 4), b_png=pixels(4, 4)))
    folder(tmp_path, a_png=pixels(4, 5))
    (tmp_path / "b.png").unlink()
    for row, name in enumerate(("a.png", "b.png")):
        with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
            images.batch([row])


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
        ({"size": 0}, ValueError, "size is 0; want 1 or more"),
        ({"size": -3}, ValueError, "size"),
        ({"size": 8.0}, TypeError, "size is 8.0; want an integer"),
        ({"size": True}, TypeError, "size"),
        ({"channels": 2}, ValueError, "channels is 2; want 1 or 3"),
        ({"channels": "3"}, TypeError, "channels"),
        ({"source": 7}, TypeError, "source is a int; want a path"),
        ({"source": np.zeros((2, 4, 4))}, TypeError, "source is a ndarray; want a path"),
        ({"source": "/no/such"}, FileNotFoundError, "source is '/no/such'; no such file or folder"),
        ({"labels": "/no/such.npy"}, FileNotFoundError, "labels is .*; no such"),
        ({"labels": "/"}, ValueError, "/: cannot read IDX file"),
    ],
)
def test_bad_arguments(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_images(**{"source": "digits"} | kwargs)


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
@given(rows=st.lists(st.integers(0, 49), max_size=20))
def test_batch_takes_any_rows(fifty: Images, rows: list[int]) -> None:
    for given_rows in (rows, np.array(rows, np.int32), torch.tensor(rows, dtype=torch.int64), tuple(rows)):
        found = fifty.batch(given_rows)
        assert found.shape == (len(rows), 1, 1, 1) and found.dtype == torch.float32
        assert (found.flatten() * 255).round().int().tolist() == rows


@pytest.mark.parametrize(
    ("rows", "error"),
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
def test_bad_rows(fifty: Images, rows: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"rows (is|has) .*; want"):
        fifty.batch(rows)


def test_batches_do_not_share_memory_with_the_data(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "x.npy", np.zeros((2, 3, 3), np.float32)))
    images.batch([0]).fill_(1)
    assert images.batch([0]).max() == 0


@settings(deadline=None)
@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**40))
def test_split(fifty: Images, fraction: float, seed: int) -> None:
    held_out = round(fraction * 50)
    if held_out in (0, 50):
        with pytest.raises(ValueError, match="fraction"):
            fifty.split(fraction, seed)
        return
    train, held = fifty.split(fraction, seed)
    assert (len(train), len(held)) == (50 - held_out, held_out)
    assert sorted(values(train) + values(held)) == list(range(50))
    for part, again in zip((train, held), fifty.split(fraction, seed), strict=True):
        assert part.labels.tolist() == values(part) == values(again)
        assert part.fingerprint == again.fingerprint != fifty.fingerprint
        assert part.num_classes == 50 and part.shape == fifty.shape
    assert len(fifty) == len(fifty.labels) == 50


def test_split_is_random_pinned_and_nests(fifty: Images) -> None:
    held = {tuple(values(fifty.split(0.2, seed)[1])) for seed in range(20)}
    assert len(held) == 20
    assert values(fifty.split(0.1, 0)[1]) == [2, 3, 11, 13, 20]  # must never change: runs are resumed
    train, _ = fifty.split(0.2, 1)
    first, second = train.split(0.5, 2)
    assert sorted(values(first) + values(second)) == values(train)


@pytest.mark.parametrize(
    ("fraction", "seed", "error"),
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
def test_bad_splits(fifty: Images, fraction: float, seed: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed" if seed else "fraction"):
        fifty.split(fraction, seed)


def test_fingerprint_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = pixels(6, 4, 4)
    changed = array.copy()
    changed[3, 2, 2] ^= 1
    path = tmp_path / "x.npy"

    def fingerprint(array: np.ndarray, **kwargs: int) -> str:
        return load_images(saved(path, array), **kwargs).fingerprint

    original = fingerprint(array)
    assert re.fullmatch("[0-9a-f]{16}", original) and fingerprint(array) == original
    np.savez(tmp_path / "x.npz", images=array)
    assert load_images(str(tmp_path / "x.npz")).fingerprint == original
    np.savez(tmp_path / "x.npz", images=array, labels=np.arange(6))
    variants = [fingerprint(changed), fingerprint(array[:5]), fingerprint(array.reshape(6, 2, 8))]
    variants += [fingerprint(array, size=2), fingerprint(array, channels=3), fingerprint(array[::-1])]
    variants.append(load_images(str(tmp_path / "x.npz")).fingerprint)
    assert len({original, *variants}) == 8

    monkeypatch.setattr(data, "HASHED_BYTES", array.nbytes // 2)  # now every second image counts
    assert fingerprint(array) == fingerprint(changed) != original
    changed[2, 0, 0] ^= 1
    assert fingerprint(array) != fingerprint(changed)


def test_fingerprint_of_folders(tmp_path: Path) -> None:
    source = folder(tmp_path, a_bmp=pixels(4, 4), b_bmp=pixels(4, 4))
    original = load_images(source).fingerprint
    assert load_images(source).fingerprint == original
    (tmp_path / "b.bmp").rename(tmp_path / "c.bmp")
    renamed = load_images(source).fingerprint
    with (tmp_path / "c.bmp").open("ab") as file:
        file.write(b"\0")
    assert len({original, renamed, load_images(source).fingerprint}) == 3
