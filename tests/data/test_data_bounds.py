"""Inputs that don't end, or grow when they are read: refused before that, with little memory."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import folder, idx, pixels, png, png16, saved
from vqfast.data import load_images
from vqfast.data.images import arrays

LOAD = """
import resource, sys
from vqfast.data import load_images
import PIL.Image, PIL.PngImagePlugin

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for path in sys.argv[1:]:
    before = most()
    try:
        said = load_images(path).batch([0]).shape
    except ValueError as error:
        said = error
    print(f"{most() - before} MB: {said}")
"""


def loaded(*paths: Path) -> list[str]:
    """What loading each takes and says."""
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "x-idx3-ubyte", "x"])
def test_pipes_and_devices(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    labelled = saved(tmp_path / "y.npy", pixels(2, 4, 4))
    for target in (None, "/dev/zero"):
        if target is not None:
            (tmp_path / name).unlink()
            (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"data is '.*{name}', a device or pipe; want a file or folder"):
            load_images(str(tmp_path / name))
        with pytest.raises(
            ValueError, match=f"labels is '.*{name}', a device or pipe; want a file or folder"
        ):
            load_images(labelled, labels=str(tmp_path / name))
        folder(tmp_path / "in", a_png=pixels(4, 4))
        (tmp_path / "in" / name).unlink(missing_ok=True)
        (tmp_path / "in" / name).symlink_to(tmp_path / name)
        assert load_images(str(tmp_path / "in")).findings["left_out"] == {
            "devices or pipes": {"files": 1, "first": [name]}
        }


@pytest.mark.slow
def test_memory_that_loading_takes(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(16 << 20), 6) * 64  # 1 GB
    huge = struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2)
    contents = {
        "zeros": (zeros, "its magic is 0x00000000"),
        "long": (gzip.compress(idx(pixels(1, 2, 2))) + zeros, "it has 5 bytes; want 4"),
        "huge": (gzip.compress(huge), "it unpacks to 9223372036854775808"),
        "whole-idx3-ubyte": (struct.pack(">4B3I", 0, 0, 8, 3, 1 << 14, 256, 256), "[1, 1, 256, 256]"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "whole-idx3-ubyte").open("ab") as file:
        file.truncate(16 + (1 << 30))  # which is mapped, not read
    lines = loaded(*(tmp_path / name for name in contents))
    for line, (_, said) in zip(lines, contents.values(), strict=True):
        assert said in line and int(line.split(" MB: ")[0]) < 100


def test_files_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "UNPACKED", 63)
    (tmp_path / "labels").write_bytes(gzip.compress(idx(pixels(64))))
    np.savez_compressed(tmp_path / "x.npz", x=pixels(4, 4, 4))
    for given in (
        {"data": str(tmp_path / "x.npz")},
        {"data": "digits", "labels": str(tmp_path / "labels")},
    ):
        with pytest.raises(ValueError, match=r"it unpacks to \d+ bytes; want 63 at most"):
            load_images(**given)
    np.savez(tmp_path / "x.npz", x=pixels(4, 4, 4))  # takes no more than it has
    assert len(load_images(str(tmp_path / "x.npz"))) == 4


def test_pictures_of_more_pixels_than_pillow_takes(tmp_path: Path) -> None:
    folder(tmp_path, a_png=pixels(4, 4))
    for side in (10_000, 100_000):  # Pillow warns of the first, and refuses the second
        (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0, bytes(1000)))
        with pytest.raises(
            ValueError, match=rf"bomb\.png: cannot read image: .*\({side**2} pixels\) exceeds limit"
        ):
            load_images(str(tmp_path))
        assert len(load_images(str(tmp_path), skip_bad=True)) == 1


MUTATED = "png jpg gif webp tif bmp ppm jp2 qoi 16.png npy npz idx idx.gz"


@pytest.mark.parametrize("kind", MUTATED.split())
def test_mutated_files(tmp_path: Path, kind: str) -> None:
    """Nothing but ValueError comes of bytes that are changed, cut or added; nothing takes a gigabyte."""
    rng = np.random.default_rng(MUTATED.index(kind))
    path = tmp_path / f"x.{kind}"
    if kind == "16.png":
        path.write_bytes(png16(rng.integers(0, 4096, (8, 8, 3)).astype(np.uint16)))
    elif kind == "npy":
        np.save(path, pixels(4, 8, 8))
    elif kind == "npz":
        np.savez_compressed(path, x=pixels(4, 8, 8), y=np.arange(4))
    elif "idx" in kind:
        path.write_bytes(gzip.compress(idx(pixels(4, 8, 8))) if "gz" in kind else idx(pixels(4, 8, 8)))
    else:
        Image.fromarray(pixels(8, 8, 3)).save(path)
    good = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        bad = bytearray(good)
        for place in rng.integers(0, min(len(bad), rng.choice([32, 1 << 20])), rng.integers(1, 4)):
            bad[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        bad = bad[: rng.integers(1, len(bad))] if rng.random() < 0.2 else bad
        path.write_bytes(bytes(bad) + bytes(rng.integers(0, 9)))
        try:
            images = load_images(str(path), size=4)
            images.batch(range(min(len(images), 4)))
        except ValueError as error:
            assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB
