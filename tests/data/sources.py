"""Images in files of every kind."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqfast.data import Images

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


def folder(root: Path, **files: np.ndarray) -> str:
    """Writes images losslessly; `__` in a name stands for `/` and its last `_` for `.`."""
    for name, array in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return str(root)


def png(width: int, height: int, bits: int, colour_type: int, content: bytes) -> bytes:
    """A PNG with any header. ``content``: its lines, a filter byte before each."""

    def chunk(name: bytes, content: bytes) -> bytes:
        length, check = (struct.pack(">I", n) for n in (len(content), zlib.crc32(name + content)))
        return length + name + content + check

    header = struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def png16(array: np.ndarray) -> bytes:
    """uint16 (H, W, C), C 1 to 4, as a PNG of 16 bits a channel, of which Pillow writes grey ones only."""
    height, width, channels = array.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    return png(width, height, 16, (0, 4, 2, 6)[channels - 1], lines)
