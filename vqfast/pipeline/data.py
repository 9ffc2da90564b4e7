"""Sets of equally sized images: scikit-learn's digits, image folders, NumPy files and IDX (MNIST) files."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
IMAGE_KEYS = ("images", "x", "data", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train")
HASHED_BYTES = 64 << 20  # larger arrays are fingerprinted by every k-th image
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns RGB into grey


class Images:
    """A set of equally sized images, read lazily; ``load_images`` makes one.

    ``labels`` is int64 (N,) or None, ``shape`` is (C, H, W), and ``num_classes`` is the largest label of the
    loaded set plus 1 (the parts of a split keep it) or None.
    """

    labels: np.ndarray | None
    shape: tuple[int, int, int]
    num_classes: int | None

    def __init__(self, source: _Stack | _Folder, labels: np.ndarray | None, channels: int | None) -> None:
        self.shape = (channels or source.shape[0], *source.shape[1:])
        self.labels = labels
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self._source = source
        self._rows = np.arange(len(source))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images at ``rows`` (integers in 0..N-1, any order, repeats allowed).

        Returns float32 (len(rows), C, H, W) in [0, 1]. Raises TypeError when ``rows`` is not a list of
        integers, ValueError when one is out of range or an image proves unreadable or outside [0, 1].
        """
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"rows is {rows.dtype} of shape {rows.shape}; want a list of integers")
        if not rows.size:
            return torch.empty(0, *self.shape)
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"rows has values {rows.min()}..{rows.max()}; want 0..{len(self) - 1}")
        pixels = torch.from_numpy(np.ascontiguousarray(self._source.read(self._rows[rows])))
        images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if images.shape[1] == 3 and self.shape[0] == 1:
            luma = (images * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
            return luma.clamp_(0, 1)  # white may round to just over 1
        return images.expand(-1, self.shape[0], -1, -1).contiguous()

    def split(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """Splits at random into (train, held-out), the latter ``fraction`` of the images, rounded.

        The same seed gives the same split; each part keeps its images in the order of the whole. Raises
        ValueError when ``fraction`` is outside (0, 1), when a part would be empty, or on a negative seed.
        """
        _check_integer("seed", seed, least=0)
        if not isinstance(fraction, Real):
            raise TypeError(f"fraction is {fraction!r}; want a number")
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; want more than 0 and less than 1")
        held = round(fraction * len(self))
        if not 0 < held < len(self):
            raise ValueError(
                f"fraction is {fraction}, which leaves one part of {len(self)} images empty; want both"
            )
        # NumPy keeps the raw stream of a bit generator across versions, but not that of ``permutation``.
        order = np.argsort(np.random.PCG64(seed).random_raw(len(self)), kind="stable")
        return self._subset(np.sort(order[held:])), self._subset(np.sort(order[:held]))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the images (contents, shape, labels and order).

        Of arrays above 64 MiB only every k-th image counts; of a folder, the files' names and byte sizes.
        """
        digest = hashlib.sha256(self._source.digest + repr(self.shape).encode() + self._rows.tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:16]

    def _subset(self, rows: np.ndarray) -> Images:
        subset = copy(self)
        subset._rows = self._rows[rows]
        subset.labels = None if self.labels is None else self.labels[rows]
        return subset


def load_images(
    source: str, labels: str | None = None, size: int | None = None, channels: int | None = None
) -> Images:
    """Opens a set of images.

    ``source`` is one of
    - "digits": scikit-learn's 1797 handwritten digits, bright on dark, enlarged from 8x8 to 32x32;
    - a folder, searched recursively, in the order of the relative names, hidden files left out. If all its
      images stand in sub-folders, the first-level ones are the classes, numbered in sorted order. Grey only
      if all are; alpha and EXIF rotation are dropped, 16 bits become 8, an animation is its first frame;
    - one image file;
    - a .npy file, memory-mapped, or a .npz file with the images under images, x, data, x_train or arr_0 (or
      in its only array of rank 3 or more) and any labels under labels, y or y_train: uint8, or floats in
      [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3. Where the last axis is 1 or 3
      it is read as C, whatever the second is;
    - an IDX file (gzipped or not) as MNIST comes, its labels beside it under the MNIST name.

    ``labels``: a .npy or IDX file of N integers >= 0, in place of the labels above. ``size``: resizes the
    shorter side to ``size`` and cuts out the central square. ``channels``: 1 (grey) or 3 (RGB) converts.

    Raises FileNotFoundError for a missing path, TypeError or ValueError for all else that is wrong. Files
    of a folder and memory-mapped floats are fully checked only when ``batch`` reads them.
    """
    if size is not None:
        _check_integer("size", size, least=1)
    if channels is not None:
        _check_integer("channels", channels, least=1)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; want 1 or 3")
    found: np.ndarray | None
    images: _Stack | _Folder
    if isinstance(source, str) and source == "digits":
        array, found = _read_digits(size or 32)
        images = _Stack(array, "digits", None)
    elif (path := _existing("source", source)).is_dir() or path.suffix.lower() in SUFFIXES:
        images = _Folder(path, size)
        found = images.classes()
    else:
        read = {".npy": _read_npy, ".npz": _read_npz}.get(path.suffix.lower(), _read_idx_pair)
        array, found = read(path)
        images = _Stack(array, str(path), size)
    if labels is not None:
        path = _existing("labels", labels)
        found = _read_npy(path)[0] if path.suffix.lower() == ".npy" else _read_idx(path, rank=1)
    if found is not None:
        found = _checked_labels(found, len(images), str(labels or source))
    return Images(images, found, channels)


class _Stack:
    """Images in an array, maybe memory-mapped. ``read``: rows -> (n, C, H, W), uint8 or float32 in [0, 1]."""

    def __init__(self, array: np.ndarray, name: str, size: int | None) -> None:
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise ValueError(f"{name} has dtype {array.dtype}; want images of uint8 or floats")
        if array.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {array.shape}; want (N, H, W), (N, H, W, C) or (N, C, H, W)")
        if not array.size:
            raise ValueError(f"{name} has shape {array.shape}; want some images")
        if array.ndim == 3:
            self.pixels = array[:, None]
        elif array.shape[3] in (1, 3):
            self.pixels = np.moveaxis(array, 3, 1)
        elif array.shape[1] in (1, 3):
            self.pixels = array
        else:
            raise ValueError(f"{name} has shape {array.shape}; want 1 or 3 channels as second or last axis")
        self.name = name
        channels, height, width = self.pixels.shape[1:]
        self.size = None if (height, width) == (size, size) else size
        self.shape = (channels, size or height, size or width)
        step = -(-array.nbytes // HASHED_BYTES)
        head = f"{array.shape} {array.dtype.str} {step}"
        self.digest = hashlib.sha256(head.encode() + array[::step].tobytes()).digest()
        if not isinstance(array, np.memmap):
            self._check(self.pixels, np.arange(len(self)))

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        pixels = np.asarray(self.pixels[rows])
        self._check(pixels, rows)
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32)
        if self.size is None:
            return pixels
        return _fit(pixels.reshape(-1, *pixels.shape[2:]), self.size).reshape(len(rows), *self.shape)

    def _check(self, pixels: np.ndarray, rows: np.ndarray) -> None:
        if pixels.dtype == np.uint8 or (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both
            return
        where = np.argwhere(~((pixels >= 0) & (pixels <= 1)))[0]
        value = pixels[tuple(where)]
        raise ValueError(f"{self.name} has {value} in image {rows[where[0]]}; want floats in [0, 1]")


class _Folder:
    """Image files under a folder, or a single one. ``read``: rows -> uint8 (n, C, H, W)."""

    def __init__(self, root: Path, size: int | None) -> None:
        from PIL import Image

        files = [root] if root.is_file() else root.rglob("*")
        root = root.parent if root.is_file() else root
        files = (file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
        names = sorted(file.relative_to(root).as_posix() for file in files)
        self.names = [name for name in names if not name.startswith(".") and "/." not in name]
        if not self.names:
            raise ValueError(f"{root} has no image in it; want {' '.join(SUFFIXES)} files")
        self.root, self.size = root, size
        digest = hashlib.sha256()
        self.mode = "L"
        for name in self.names:
            file = root / name
            with _naming(file, "image"), Image.open(file) as picture:
                if picture.mode in ("I", "F"):
                    raise ValueError("it has 32 bits a channel; want 8 or 16")
                if picture.mode not in ("1", "L", "LA", "La") and not picture.mode.startswith("I;16"):
                    self.mode = "RGB"
                width, height = picture.size
            if name == self.names[0]:
                first = (width, height)
            if size is None and (width, height) != first:
                raise ValueError(
                    f"{root} has images of unequal size: {self.names[0]} is {first[0]}x{first[1]}, {name} is "
                    f"{width}x{height}; --size makes them equal"
                )
            digest.update(os.fsencode(name) + b"\0%d\n" % file.stat().st_size)
        self.shape = (1 if self.mode == "L" else 3, size or first[1], size or first[0])
        self.digest = digest.digest()

    def __len__(self) -> int:
        return len(self.names)

    def classes(self) -> np.ndarray | None:
        if not all("/" in name for name in self.names):
            return None
        return np.unique([name.split("/")[0] for name in self.names], return_inverse=True)[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._decode(self.root / self.names[row]) for row in rows])

    def _decode(self, file: Path) -> np.ndarray:
        from PIL import Image, ImageOps

        with _naming(file, "image"), Image.open(file) as opened:
            opened.info.pop("transparency", None)
            picture: Image.Image = opened
            if picture.mode.startswith("I;16"):  # Pillow would clip at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            picture = picture.convert(self.mode)
            if self.size is not None:
                picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BICUBIC)
            pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
            if pixels.shape != self.shape:
                raise ValueError(f"it has shape {pixels.shape}; want {self.shape} as when loaded")
            return pixels


def _read_digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _fit(np.round(digits.images * (255 / 16)).astype(np.uint8), size), digits.target


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    with _naming(path, ".npy file"):
        return np.lib.format.open_memmap(path, mode="r"), None  # refuses pickled objects


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with _naming(path, ".npz file"), np.lib.npyio.NpzFile(path, allow_pickle=False) as arrays:
        found = [key for key in IMAGE_KEYS if key in arrays.files][:1]
        found = found or [key for key in arrays.files if np.ndim(arrays[key]) >= 3]
        if len(found) != 1:
            raise ValueError(f"it has {arrays.files}; want images under one of {', '.join(IMAGE_KEYS)}")
        labels = next((arrays[key] for key in LABEL_KEYS if key in arrays.files), None)
        return np.asarray(arrays[found[0]]), labels


def _read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images of an IDX file, and the labels of the file beside it, if there."""
    name = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = (path.with_name(name + end) for end in ("", ".gz") if "images" in path.name)
    found = next((file for file in beside if file.is_file()), None)
    return _read_idx(path, rank=3), None if found is None else _read_idx(found, rank=1)


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """An IDX file: the magic 00 00 08 (uint8) ``rank``, the big-endian uint32 dimensions, the bytes."""
    with _naming(path, "IDX file"):
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        magic = bytes([0, 0, 8, rank])
        if content[:4] != magic:
            raise ValueError(
                f"its magic is 0x{content[:4].hex()}; want 0x{magic.hex()}, being no NumPy file by its name"
            )
        start = 4 + 4 * rank
        if len(content) < start:
            raise ValueError(f"it has {len(content)} bytes; want {start} of header")
        shape = struct.unpack(f">{rank}I", content[4:start])
        array = np.frombuffer(content, np.uint8, offset=start)
        want = int(np.prod(shape, dtype=object))  # Python integers do not overflow
        if array.size != want:
            raise ValueError(f"it has {array.size} bytes; want {want} for shape {shape}")
        return array.reshape(shape)


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} has labels of shape {labels.shape}; want {count}, one an image")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} has labels of dtype {labels.dtype}; want integers")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{name} has the label {labels.min()}; want 0 or more")
    return labels


def _fit(images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W), uint8 or float32 in [0, 1] -> (n, size, size): shorter side to ``size``, centre cropped."""
    from PIL import Image, ImageOps

    pictures = (Image.fromarray(image) for image in images)
    fitted = [np.asarray(ImageOps.fit(p, (size, size), Image.Resampling.BICUBIC)) for p in pictures]
    stack = np.stack(fitted)
    return stack if stack.dtype == np.uint8 else stack.clip(0, 1)  # bicubic floats overshoot


def _existing(argument: str, path: str) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument} is a {type(path).__name__}; want a path")
    if not Path(path).exists():
        raise FileNotFoundError(f"{argument} is {os.fspath(path)!r}; no such file or folder")
    return Path(path)


def _check_integer(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} is {value!r}; want an integer")
    if value < least:
        raise ValueError(f"{argument} is {value}; want {least} or more")


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Turns what a decoder raises on bad bytes (nearly anything) into a one-line ValueError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot read {kind}: {reason}") from error
