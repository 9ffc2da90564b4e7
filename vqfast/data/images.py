"""A set of equally sized images, from wherever they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.data import disk
from vqfast.data.arrays import Stack, read_idx, read_idx_pair, read_npy, read_npz
from vqfast.data.folder import Folder
from vqfast.data.picture import SUFFIXES, opened
from vqfast.data.pixels import fitted

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns RGB into grey


class Images:
    """A set of equally sized images, read lazily; ``load_images`` makes one.

    ``labels`` is int64 (N,) or None, ``shape`` is (C, H, W), and ``num_classes`` is the largest label of the
    loaded set plus 1 (the parts of a split keep it) or None.
    """

    labels: np.ndarray | None
    shape: tuple[int, int, int]
    num_classes: int | None

    def __init__(
        self, source: Stack | Folder, name: str, labels: np.ndarray | None, channels: int | None
    ) -> None:
        self.shape = (channels or source.shape[0], *source.shape[1:])
        self.labels = labels
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self._source, self._name = source, name
        self._rows = np.arange(len(source))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images at ``rows`` (integers in 0..N-1, any order, repeats allowed).

        Returns float32 (len(rows), C, H, W) in [0, 1]. Raises TypeError when ``rows`` is not a list of
        integers, ValueError when one is out of range, an image is outside its range, or files can't be read
        (then ``Unreadable``, which names all such files among them).
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

    def split(self, holdout: float, seed: int) -> tuple[Images, Images]:
        """Splits at random into (train, held-out), the latter ``holdout`` of the images, rounded.

        The same seed gives the same split; each part keeps its images in the order of the whole. Raises
        ValueError when ``holdout`` is outside (0, 1), when a part would be empty, or on a negative seed.
        """
        _check_integer("seed", seed, least=0)
        if not isinstance(holdout, Real):
            raise TypeError(f"holdout is {holdout!r}; want a number")
        if not 0 < holdout < 1:
            raise ValueError(f"holdout is {holdout}; want more than 0 and less than 1")
        held = round(holdout * len(self))
        if not 0 < held < len(self):
            images = disk.counted(len(self), "image")
            raise ValueError(f"holdout is {holdout}, which leaves one part of {images} empty; want both")
        # NumPy keeps the raw stream of a bit generator across versions, but not that of ``permutation``.
        order = np.argsort(np.random.PCG64(seed).random_raw(len(self)), kind="stable")
        return self._subset(np.sort(order[held:])), self._subset(np.sort(order[:held]))

    def look(self, size: int, tick: Callable[[int], object]) -> None:
        """Reads every image, ``size`` at a time; ``tick`` is told how many.

        Raises:
            Unreadable: files can't be read; it names all.
        """
        bad: dict[str, str] = {}
        skippable = False
        for first in range(0, len(self), size):
            rows = range(first, min(first + size, len(self)))
            try:
                self.batch(rows)
            except disk.Unreadable as error:
                bad |= error.bad
                skippable = error.skippable
            tick(len(rows))
        if bad:
            raise disk.Unreadable(bad, skippable)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the images (contents, names of files, shape, labels and order).

        All their bytes are read for it. Who knows it from before, by ``stamp``, may set it.
        """
        digest = hashlib.sha256(self._source.contents(self._rows) + repr(self.shape).encode())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:32]

    @property
    def stamp(self) -> str:
        """32 hex digits that are the same only while the files stay untouched (see ``disk.stamp_of``)."""
        digest = hashlib.sha256(self._source.stamp())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:32]

    @property
    def found(self) -> dict[str, Any]:
        """What was found where they come from: numbers used and left out, the reasons, some names."""
        left_out = {
            why: {"files": len(names), "first": sorted(names)[: disk.NAMED]}
            for why, names in sorted(self._source.left_out.items())
        }
        return {
            "used": len(self._source),
            "depth": self._source.depth,
            "classes": self._source.classes,
            "bad": self._source.bad,
            "left_out": left_out,
        }

    def told(self) -> list[str]:
        """The same in words, a line each."""
        source, (channels, height, width) = self._source, self.shape
        kind = f"{'grey' if channels == 1 else 'RGB'} {width}x{height}"
        depth = f", {source.depth} bits" if source.depth else ""
        classes = f", {len(source.classes)} classes ({disk.listed(source.classes)})" if source.classes else ""
        lines = [f"{disk.counted(len(source), 'image')} of {disk.shown(self._name)}: {kind}{depth}{classes}"]
        if source.no_classes:
            are = "is no class" if len(source.no_classes) == 1 else "are no classes"
            lines.append(f"no labels: {disk.listed(source.no_classes)} {are} of the run")
        bad = [f"left out {disk.shown(n)}, which can't be read: {why}" for n, why in source.bad.items()]
        return [*lines, *disk.told(source.left_out), *bad]

    def _subset(self, rows: np.ndarray) -> Images:
        subset = copy(self)
        subset.__dict__.pop("fingerprint", None)
        subset._rows = self._rows[rows]
        subset.labels = None if self.labels is None else self.labels[rows]
        return subset


def load_images(
    data: str,
    labels: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    depth: int | None = None,
    skip_bad: bool | Mapping[str, str] = False,
    classes: Sequence[str] | None = None,
) -> Images:
    """Opens a set of images.

    ``data`` is one of
    - "digits": scikit-learn's 1797 handwritten digits, bright on dark, enlarged from 8x8 to 32x32;
    - a folder, searched recursively, links followed, in the order of the relative names. Files are used that
      Pillow knows by their content as PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, JPEG 2000, AVIF or QOI, whatever
      they are called; others are left out, as are hidden ones. ``found`` counts what is left out.
      Where the first-level folders with images are splits by their names (train, val, valid, test, dev and
      so on, maybe with a number), only the one called train or training is read.
      If the images stand in sub-folders, the first-level ones are the classes, numbered in sorted order, and
      images beside several such folders are left out as long as they are fewer; else there are no classes.
      Grey only if all are; alpha is dropped, EXIF's rotation done, an animation is its first frame. Channels
      of more than 8 bits are integers of ``depth`` bits;
    - one image file;
    - a .npy file, memory-mapped, or a .npz file with the images under images, x, data, x_train or arr_0 (or
      in its only array of rank 3 or more) and any labels under labels, y or y_train, of shape (N, H, W),
      (N, H, W, C) or (N, C, H, W) with C 1, 3 or 4 (alpha, which is dropped). Where the last axis is 1 or 3
      it is read as C, whatever the second is. They are uint8; other integers, of ``depth`` bits; or floats in
      [0, 1], or in 0..255 where more than half of the positive ones exceed 1 and the largest exceeds 127;
    - an IDX file (gzipped or not) as MNIST comes, its labels beside it under the MNIST name.

    ``labels``: a .npy or IDX file of N integers >= 0, in place of the labels above, also for images that
    ``skip_bad`` leaves out. ``size``: resizes the shorter side to ``size`` and cuts out the central square.
    ``channels``: 1 (grey) or 3 (RGB) converts. ``depth``: 1..63; None: as many bits as the largest value of
    all takes, so that 12-bit data in 16-bit files becomes 0..1. ``skip_bad``: leaves image files out that
    can't be read, which takes reading all; or those that are its keys, as ``found["bad"]`` named them before.
    ``classes``: the names of all classes, in the order of their labels; with other folders, there are none.

    Raises FileNotFoundError for a missing path, TypeError or ValueError for all else that is wrong,
    ``Unreadable`` (a ValueError) for image files. Files of a folder and memory-mapped arrays are fully
    checked only when ``batch`` reads them.
    """
    for name, value, most in (("size", size, 2**31 - 1), ("channels", channels, None), ("depth", depth, 63)):
        if value is not None:
            _check_integer(name, value, least=1, most=most)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; want 1 or 3")
    found: np.ndarray | None
    images: Stack | Folder
    if isinstance(data, str) and data == "digits":
        array, found = _read_digits(size or 32)
        images = Stack(array, "digits", None, None, None)
    elif (path := disk.existing("data", data)).suffix.lower() in (".npy", ".npz") and path.is_file():
        array, found = read_npz(path) if path.suffix.lower() == ".npz" else (read_npy(path), None)
        images = Stack(array, str(path), path, size, depth)
    elif path.is_dir() or _is_image(path):
        images = Folder(path, size, depth, skip_bad, labels is not None, classes)
        found = images.labels
    else:
        array, found = read_idx_pair(path)
        images = Stack(array, str(path), path, size, depth)
    if labels is not None:
        path = disk.existing("labels", labels)
        found = read_npy(path) if path.suffix.lower() == ".npy" else read_idx(path, rank=1)
        found = _checked_labels(found, len(images) + len(images.bad), str(labels))[images.kept]
    elif found is not None:
        found = _checked_labels(found, len(images), str(data))
    return Images(images, str(data), found, channels)


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its name or content."""
    try:
        with opened(path):
            return True
    except Exception:  # as a decoder raises on bad bytes
        return path.suffix.lower() in SUFFIXES


def _read_digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return fitted(np.round(digits.images * (255 / 16)).astype(np.uint8), size), digits.target


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


def _check_integer(argument: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} is {value!r}; want an integer")
    if value < least:
        raise ValueError(f"{argument} is {value}; want {least} or more")
    if most is not None and value > most:
        raise ValueError(f"{argument} is {value}; want {most} at most")
