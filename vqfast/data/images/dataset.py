"""A set of equally sized images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer, check_number
from vqfast.data import disk
from vqfast.data.protocol import BATCH

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns RGB into grey


class Pixels(Protocol):
    """Where images come from: files in a folder, or an array.

    Attributes:
        shape: ``(C, H, W)`` of an image.
        depth: bits of a channel where they are integers of more than 8 bits, else None.
        classes: the names of the classes, in the order of their labels, or None.
        no_classes: folders that are none of the classes asked for: then there are no labels.
        left_out: files that aren't used, by reason.
        bad: files that can't be read, each with the reason.
        names: of the images' files, in the order of the images; None for an array.
    """

    shape: tuple[int, int, int]
    depth: int | None
    classes: list[str] | None
    no_classes: list[str]
    left_out: disk.LeftOut
    bad: dict[str, str]

    @property
    def names(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The images of these numbers: ``(n, C, H, W)``, uint8 or float32 in [0, 1]."""
        ...

    def stamp(self) -> bytes:
        """The same only while nobody touches the files."""
        ...

    def contents(self, numbers: np.ndarray) -> bytes:
        """Identifies the images of these numbers by all their bytes."""
        ...


class Images:
    """A set of equally sized images, read when they are needed; ``load_images`` makes one.

    Attributes:
        shape: ``(C, H, W)`` of an image.
        labels: int64 ``(N,)``, or None.
        num_classes: the largest label of the loaded set plus 1, which the parts of a split keep; or None.

    >>> from vqfast.data import load_images
    >>> images = load_images("digits", size=8)
    >>> len(images), images.shape, images.num_classes
    (1797, (1, 8, 8), 10)
    >>> images.batch([3, 1, 4]).shape, images.labels[[3, 1, 4]]
    (torch.Size([3, 1, 8, 8]), array([3, 1, 4]))
    """

    shape: tuple[int, ...]
    labels: np.ndarray | None
    num_classes: int | None

    def __init__(self, pixels: Pixels, name: str, labels: np.ndarray | None, channels: int | None) -> None:
        self.shape = (channels or pixels.shape[0], *pixels.shape[1:])
        self.labels = labels
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self._pixels, self._name = pixels, name
        self._numbers = np.arange(len(pixels))
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images of these numbers, as float32 ``(len(numbers), C, H, W)`` in [0, 1].

        Args:
            numbers: integers in 0..N-1, in any order, repeated or not.

        Raises:
            TypeError: ``numbers`` is no list of integers.
            ValueError: a number or a pixel is out of range.
            Unreadable: files can't be read; it names all of those among ``numbers``.
        """
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise TypeError(f"numbers is {numbers.dtype} of shape {numbers.shape}; want a list of integers")
        if not numbers.size:
            return torch.empty(0, *self.shape)
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise ValueError(f"numbers has values {numbers.min()}..{numbers.max()}; want 0..{len(self) - 1}")
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels.read(self._numbers[numbers])))
        images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if images.shape[1] == 3 and self.shape[0] == 1:
            luma = (images * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
            return luma.clamp_(0, 1)  # white may round to just over 1
        return images.expand(-1, self.shape[0], -1, -1).contiguous()

    def split(self, holdout: float, *, seed: int, group: str | None = None) -> tuple[Images, Images]:
        """Splits at random into a training part and a held-out part.

        Each part keeps its images in the order of the whole.

        Args:
            holdout: the share of the held-out part, above 0 and below 1; its size is rounded.
            seed: the same one gives the same split; 0 or more.
            group: a regular expression that is searched in the name of each file. Images for which its first
                pair of parentheses (or, without one, the whole) finds the same text stay together.

        Raises:
            TypeError: ``holdout`` is no number or ``seed`` no integer.
            ValueError: one is out of range, a part would be empty, or ``group`` fits no name of a file.
        """
        check_integer("seed", seed, 0)
        check_number("holdout", holdout, above=0, below=1)
        held_out = round(holdout * len(self))
        if not 0 < held_out < len(self):
            images = disk.quantity(len(self), "image")
            raise ValueError(f"holdout is {holdout}, which leaves one part of {images} empty; want both")
        # NumPy keeps the raw stream of a bit generator across versions, but not that of ``permutation``.
        groups = np.arange(len(self)) if group is None else self._groups(group)
        sizes = np.bincount(groups)
        order = np.argsort(np.random.PCG64(seed).random_raw(len(sizes)), kind="stable")
        held_out_groups = 1 + int(np.abs(sizes[order].cumsum() - held_out).argmin())
        if held_out_groups == len(sizes):
            raise ValueError(f"group is {group!r}, which leaves the training part empty; want smaller groups")
        held = np.isin(groups, order[:held_out_groups])
        return self._subset(np.flatnonzero(~held)), self._subset(np.flatnonzero(held))

    def _groups(self, group: str) -> np.ndarray:
        """The number of each image's group."""
        if self._pixels.names is None:
            raise ValueError(f"group is {group!r}, but {self._name} is an array; want a folder of images")
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise ValueError(f"group is {group!r}; want a regular expression: {error}") from error
        found = []
        for name in (self._pixels.names[number] for number in self._numbers.tolist()):
            match = pattern.search(name)
            if match is None:
                raise ValueError(f"group is {group!r}, which isn't found in {disk.printable(name)}")
            found.append(match[min(1, pattern.groups)] or "")
        return np.unique(found, return_inverse=True)[1]

    def check(self, advance: Callable[[int], object] = lambda read: None) -> None:
        """Reads every image.

        Args:
            advance: is called with the number of images read since the last call.

        Raises:
            Unreadable: files can't be read; it names all of them.
        """
        bad: dict[str, str] = {}
        skippable = False
        for first in range(0, len(self), BATCH):
            numbers = range(first, min(first + BATCH, len(self)))
            try:
                self.batch(numbers)
            except disk.Unreadable as error:
                bad |= error.bad
                skippable = error.skippable
            advance(len(numbers))
        if bad:
            raise disk.Unreadable(bad, skippable)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify the images (contents, names of files, shape, labels and order).

        All their bytes are read for it, once. A caller who knows it from before, by ``stamp``, may set it.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(self._pixels.contents(self._numbers) + repr(self.shape).encode())
            digest.update(b"" if self.labels is None else self.labels.tobytes())
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._fingerprint = value

    @property
    def stamp(self) -> str:
        """32 hex digits that are the same only while the files stay untouched (see ``disk.stamp_of``)."""
        digest = hashlib.sha256(self._pixels.stamp())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:32]

    @property
    def findings(self) -> dict[str, Any]:
        """How the files were read: numbers used and left out, the reasons, some names."""
        left_out = {
            why: {"files": len(names), "first": sorted(names)[: disk.NAMES_SHOWN]}
            for why, names in sorted(self._pixels.left_out.items())
        }
        return {
            "used": len(self._pixels),
            "depth": self._pixels.depth,
            "classes": self._pixels.classes,
            "bad": self._pixels.bad,
            "left_out": left_out,
        }

    def describe(self) -> list[str]:
        """``findings`` in words, in lines."""
        pixels, (channels, height, width) = self._pixels, self.shape
        colours = f"{'grey' if channels == 1 else 'RGB'} {width}x{height}"
        depth = f", {pixels.depth} bits" if pixels.depth else ""
        names = disk.first_names(pixels.classes or [])
        classes = f", {len(pixels.classes)} classes ({names})" if pixels.classes else ""
        images = f"{disk.quantity(len(pixels), 'image')} of {disk.printable(self._name)}"
        lines = [f"{images}: {colours}{depth}{classes}"]
        if pixels.no_classes:
            are = "is no class" if len(pixels.no_classes) == 1 else "are no classes"
            lines.append(f"no labels: {disk.first_names(pixels.no_classes)} {are} of the run")
        bad = [f"left out {disk.printable(n)}, which can't be read: {why}" for n, why in pixels.bad.items()]
        return [*lines, *disk.describe(pixels.left_out), *bad]

    def _subset(self, places: np.ndarray) -> Images:
        subset = copy(self)
        subset._fingerprint = None
        subset._numbers = self._numbers[places]
        subset.labels = None if self.labels is None else self.labels[places]
        return subset
