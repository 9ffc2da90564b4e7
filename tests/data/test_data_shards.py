"""Tar files of images: the same images as in a folder, by numbers, with their classes; damage is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqfast.data import Unreadable, load_images

RNG = np.random.default_rng(0)
PICTURES = {f"{number:03d}": RNG.integers(256, size=(6, 5, 3), dtype=np.uint8) for number in range(7)}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(keys: list[str], *, classes: bool = True) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for key in keys:
        found[f"{key}.png"] = png(PICTURES[key])
        found[f"{key}.json"] = b"{}"
        if classes:
            found[f"{key}.cls"] = str(int(key) % 3).encode()
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    keys = list(PICTURES)
    write_tar(folder / "b-1.tar", members(keys[4:]))
    write_tar(folder / "b-0.tar", members(keys[:4]))
    (folder / "index.json").write_text("{}")
    return folder


def test_shards_are_a_folder_of_images(shards: Path, tmp_path: Path) -> None:
    for key, pixels in PICTURES.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{key}.png").write_bytes(png(pixels))
    found, wanted = load_images(shards), load_images(tmp_path / "files")
    assert found.shape == wanted.shape and len(found) == 7
    numbers = [6, 0, 3, 4, 3]
    assert torch.equal(found.batch(numbers), wanted.batch(numbers))
    assert found.labels is not None and found.labels.tolist() == [int(key) % 3 for key in PICTURES]
    squares = load_images(shards, size=4, channels=1), load_images(tmp_path / "files", size=4, channels=1)
    assert torch.equal(squares[0].batch(numbers), squares[1].batch(numbers))
    train, held_out = found.split(0.3, seed=1, group=r"(\d)\.png")
    assert len(train) + len(held_out) == 7
    one = load_images(shards / "b-1.tar")
    assert torch.equal(one.batch([0]), found.batch([4]))


def test_the_fingerprint_is_of_contents_and_the_stamp_of_files(shards: Path) -> None:
    before = load_images(shards)
    write_tar(shards / "b-1.tar", members(list(PICTURES)[4:]))
    after = load_images(shards)
    assert before.fingerprint == after.fingerprint and before.stamp != after.stamp
    changed = members(list(PICTURES)[4:])
    changed["005.png"] = png(PICTURES["000"])
    write_tar(shards / "b-1.tar", changed)
    assert load_images(shards).fingerprint != before.fingerprint


def test_classes(tmp_path: Path) -> None:
    keys = list(PICTURES)
    path = write_tar(tmp_path / "a.tar", members(keys, classes=False))
    assert load_images(path).labels is None
    own = np.arange(7)
    np.save(tmp_path / "own.npy", own)
    labels = load_images(path, labels=tmp_path / "own.npy").labels
    assert labels is not None and labels.tolist() == own.tolist()
    write_tar(path, members(keys[:2]) | members(keys[2:], classes=False))
    with pytest.raises(ValueError, match=r"5 images without a class, the first a\.tar/002\.png; want \.cls"):
        load_images(path)
    assert load_images(path, labels=tmp_path / "own.npy").labels is not None
    write_tar(path, members(keys[:1]) | {"000.cls": b"cat"})
    with pytest.raises(ValueError, match=r"a\.tar/000\.cls has b'cat'; want an integer"):
        load_images(path)


def test_wide_values(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    wide = RNG.integers(2**16, size=(4, 4)).astype(np.uint16)
    Image.fromarray(wide).save(buffer, "PNG")
    images = load_images(write_tar(tmp_path / "a.tar", {"x.png": buffer.getvalue()}))
    white = 2 ** int(wide.max()).bit_length() - 1
    torch.testing.assert_close(images.batch([0])[0, 0], torch.from_numpy(wide.astype(np.float32) / white))


def test_damage(tmp_path: Path) -> None:
    whole = members(list(PICTURES))
    path = write_tar(tmp_path / "a.tar", whole | {"003.png": whole["003.png"][:60]})
    with pytest.raises(Unreadable, match=r"a\.tar/003\.png: cannot read image"):
        load_images(path).check()
    assert len(load_images(path, skip_bad=True)) == 6
    data = write_tar(path, whole).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.tar: cannot read tar file"):
        load_images(path)
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"a\.tar: cannot read tar file"):
        load_images(path)
    with tarfile.open(path, "w") as tar:  # a link to a file that the user has
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"no image in it.*links or devices"):
        load_images(path)
