"""Images in arrays: NumPy's files and the IDX files of MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vqfast.data import disk
from vqfast.data.images.pixels import as_unit, first_outside, squares
from vqfast.files import open_file

IMAGE_KEYS = ("images", "x", "data", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train")
UNPACKED = 4 << 30  # bytes that a compressed file may unpack to in memory
BLOCK = 64 << 20  # bytes read at a time, and the sample that decides on the range of floats


class ArrayPixels:
    """Images in an array, maybe memory-mapped; see ``Pixels``.

    Integers other than uint8 have ``depth`` bits, or as many as the largest value needs. Floats are 0..1, or
    0..255 where more than half of the positive ones exceed 1 and the largest exceeds 127; a sample of 64 MiB,
    spread evenly, decides. Other ranges are refused.

    Args:
        array: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``; C is 1, 3 or 4, whose last (alpha) is
            dropped.
        name: for messages.
        files: those that the array was read from.
        size: pixels along a side of the squares that the images become; None leaves them as they are.
        depth: see above.
    """

    def __init__(
        self, array: np.ndarray, name: str, files: Sequence[Path], size: int | None, depth: int | None
    ) -> None:
        if array.dtype.kind not in "buif":
            raise ValueError(f"{name} has dtype {array.dtype}; want images of integers or floats")
        if array.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {array.shape}; want (N, H, W), (N, H, W, C) or (N, C, H, W)")
        if not array.size:
            raise ValueError(f"{name} has shape {array.shape}; want at least one image")
        self.pixels = _channels_first(array, name)
        self.name, self.size = name, size
        self.files = {file.name: file.stat() for file in files}
        self.used = np.arange(len(array))
        self.left_out: disk.LeftOut = {}
        self.bad: dict[str, str] = {}
        self.names: list[str] | None = None
        self.classes: list[str] | None = None
        self.no_classes: list[str] = []
        channels, height, width = self.pixels.shape[1:]
        self.shape = (channels, size or height, size or width)
        self.depth: int | None = None
        self.white = 255
        if array.dtype.kind == "f":
            self.white = self._white()
        elif array.dtype != np.uint8:
            highest = 1 if depth else max(1, *(int(block.max()) for _, block in self._blocks()))
            self.depth = depth or highest.bit_length()
            self.white = 2**self.depth - 1
        if not isinstance(array, np.memmap):
            for numbers, block in self._blocks():
                self._as_unit(block, numbers)  # refuses values out of range at once

    def __len__(self) -> int:
        return len(self.pixels)

    def stamp(self) -> bytes:
        return disk.stamp_of(self.files) if self.files else self.contents(self.used)

    def contents(self, numbers: np.ndarray) -> bytes:
        digest = hashlib.sha256(f"{self.pixels.shape[1:]} {self.pixels.dtype.str} {self.depth}".encode())
        for block in np.array_split(numbers, self._num_blocks(len(numbers))):
            digest.update(self.pixels[block].tobytes())
        return digest.digest()

    def read(self, numbers: np.ndarray) -> np.ndarray:
        pixels = self._as_unit(np.asarray(self.pixels[numbers]), numbers)
        if self.size is None:
            return pixels
        return squares(pixels.reshape(-1, *pixels.shape[2:]), self.size).reshape(len(numbers), *self.shape)

    def _num_blocks(self, num: int) -> int:
        return max(1, min(num, -(-self.pixels[:1].nbytes * num // BLOCK)))

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for numbers in np.array_split(self.used, self._num_blocks(len(self))):
            yield numbers, np.asarray(self.pixels[numbers[0] : numbers[-1] + 1])

    def _white(self) -> int:
        """The value of white in floats: 1 or 255."""
        sample = np.asarray(self.pixels[:: self._num_blocks(len(self))])
        wide = bool(np.count_nonzero(sample > 1) > np.count_nonzero(sample > 0) / 2)
        if wide and not 127 < sample.max() <= 255:
            raise ValueError(
                f"{self.name} has floats {sample.min():g}..{sample.max():g}; want floats in [0, 1], or in "
                "0..255 with the largest above 127: divide them by the value of white"
            )
        return 255 if wide else 1

    def _as_unit(self, pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """uint8 as it is; other values as float32 in [0, 1]."""
        if pixels.dtype == np.uint8:
            return pixels
        if (place := first_outside(pixels, self.white)) is not None:
            kind = f"floats in [0, {self.white}]" if self.depth is None else f"integers of {self.depth} bits"
            raise ValueError(f"{self.name} has {pixels[place]} in image {numbers[place[0]]}; want {kind}")
        return as_unit(pixels, self.white)


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3:
        return array[:, None]
    for channels in ((1, 3), (4,)):
        if array.shape[3] in channels:
            return np.moveaxis(array, 3, 1)[:, :3]
        if array.shape[1] in channels:
            return array[:, :3]
    raise ValueError(f"{name} has shape {array.shape}; want 1, 3 or 4 channels as second or last axis")


def read_npy(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped."""
    with disk.decoding(path, ".npy file"):
        return np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects


def read_npz(
    path: Path, keys: Sequence[str] = IMAGE_KEYS, others: Sequence[Sequence[str]] = (LABEL_KEYS,)
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """The items of a .npz file, and other arrays, each under the first of its names that is there, or None.

    The items may also be the only array of rank 3 or more.
    """
    with disk.decoding(path, ".npz file"), open_file(path) as file:
        with zipfile.ZipFile(file) as archive:
            packed = (member for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED)
            _check_unpacked(sum(member.file_size for member in packed))
        arrays = np.lib.npyio.NpzFile(file, allow_pickle=False)
        found = [key for key in keys if key in arrays.files][:1]
        found = found or [key for key in arrays.files if np.ndim(arrays[key]) >= 3]
        if len(found) != 1:
            raise ValueError(f"it has {arrays.files}; want images under one of {', '.join(keys)}")
        beside = [next((arrays[key] for key in names if key in arrays.files), None) for names in others]
        return np.asarray(arrays[found[0]]), beside


def read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images of an IDX file, and the labels of the file beside it, or None."""
    name = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = (path.with_name(name + end) for end in ("", ".gz") if "images" in path.name)
    found = next((file for file in beside if file.is_file()), None)
    return read_idx(path, rank=3), None if found is None else read_idx(found, rank=1)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """An IDX file: the magic 00 00 08 (uint8) ``rank``, the big-endian uint32 dimensions, the bytes.

    One that isn't gzipped is memory-mapped.
    """
    with disk.decoding(path, "IDX file"):
        magic, start = bytes([0, 0, 8, rank]), 4 + 4 * rank
        with open_file(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open_file(path) as opened:
            header = opened.read(start)
            if header[:4] != magic:
                raise ValueError(
                    f"its magic is 0x{header[:4].hex()}; want 0x{magic.hex()}, as it is no image and, by its "
                    "name, no NumPy file"
                )
            if len(header) < start:
                raise ValueError(f"it has {len(header)} bytes; want {start} of header")
            shape = struct.unpack(f">{rank}I", header[4:])
            want = math.prod(shape)
            if packed:
                _check_unpacked(want)
            content = opened.read(want + 1) if packed else b""
        size = len(content) if packed else path.stat().st_size - start
        if size != want:
            raise ValueError(f"it has {size} bytes; want {want} for shape {shape}")
        if packed:
            return np.frombuffer(content, np.uint8).reshape(shape)
        return np.memmap(path, np.uint8, "r", start, shape) if want else np.empty(shape, np.uint8)


def _check_unpacked(size: int) -> None:
    if size > UNPACKED:
        raise ValueError(
            f"it unpacks to {size} bytes; want {UNPACKED} at most: a .npy of any size is read in place"
        )
