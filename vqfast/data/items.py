"""What sets of items of all kinds share: their files, the split, and what was found."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from vqfast.checks import check_integer, check_number
from vqfast.data import disk
from vqfast.data.protocol import BATCH

if TYPE_CHECKING:
    from typing_extensions import Self


class Files(Protocol):
    """Where items come from: files in a folder, or an array.

    Attributes:
        classes: the names of the classes, in the order of their labels, or None.
        no_classes: folders that are none of the classes asked for: then there are no labels.
        left_out: files that aren't used, by reason.
        bad: files that can't be read, each with the reason.
        names: of the items' files, in the order of the items; None for an array.
    """

    classes: list[str] | None
    no_classes: list[str]
    left_out: disk.LeftOut
    bad: dict[str, str]

    @property
    def names(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def stamp(self) -> bytes:
        """The same only while nobody touches the files."""
        ...

    def contents(self, numbers: np.ndarray) -> bytes:
        """Identifies the items of these numbers by all their bytes."""
        ...


class Items:
    """A set of items, read when they are needed; a kind of data defines ``batch`` and ``summary``.

    Attributes:
        item: what one item is called.
        one_class, classes: what a class and the classes are called.
        shape: of an item: channels, then sizes.
        labels: int64 ``(N,)``, or None.
        num_classes: the largest label of the loaded set plus 1, which the parts of a split keep; or None.
    """

    item: str
    one_class: str = "class"
    classes: str = "classes"
    shape: tuple[int, ...]
    labels: np.ndarray | None
    num_classes: int | None

    def __init__(self, files: Files, name: str, labels: np.ndarray | None) -> None:
        self.labels = labels
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self._files, self._name = files, name
        self._numbers = np.arange(len(files))
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The items of these numbers: float32 ``(n, *shape)``."""
        raise NotImplementedError(f"{type(self).__name__} defines no batch")

    def varied(self, numbers: Sequence[int] | np.ndarray | Tensor, chances: Tensor) -> Tensor:
        """As ``batch``, for training: each item is varied at random, if the set was loaded so.

        Args:
            chances: float64 ``(n, 3)`` in [0, 1), which alone decide how.
        """
        return self.batch(numbers)

    def summary(self) -> str:
        """How the items were read, in a few words."""
        raise NotImplementedError(f"{type(self).__name__} defines no summary")

    def _own(self, numbers: Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
        """The numbers of the same items among all files.

        Raises:
            TypeError: ``numbers`` is no list of integers.
            ValueError: a number is out of range.
        """
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise TypeError(f"numbers is {numbers.dtype} of shape {numbers.shape}; want a list of integers")
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise ValueError(f"numbers has values {numbers.min()}..{numbers.max()}; want 0..{len(self) - 1}")
        return self._numbers[numbers.astype(np.int64)]

    def split(self, val: float, *, seed: int, group: str | None = None) -> tuple[Self, Self]:
        """Splits at random into a training part and a held-out part.

        Each part keeps its items in the order of the whole.

        Args:
            val: the share of the held-out part, above 0 and below 1; its size is rounded.
            seed: the same one gives the same split; 0 or more.
            group: a regular expression that is searched in the name of each file. Items for which its first
                pair of parentheses (or, without one, the whole) finds the same text stay together.

        Raises:
            TypeError: ``val`` is no number or ``seed`` no integer.
            ValueError: one is out of range, a part would be empty, or ``group`` fits no name of a file.
        """
        check_integer("seed", seed, 0)
        check_number("val", val, above=0, below=1)
        held_out = round(val * len(self))
        if not 0 < held_out < len(self):
            items = disk.quantity(len(self), self.item)
            raise ValueError(f"val is {val}, which leaves one part of {items} empty; want both")
        # NumPy keeps the raw stream of a bit generator across versions, but not that of ``permutation``.
        groups = self._alone() if group is None else self._groups(group)
        sizes = np.bincount(groups)
        order = np.argsort(np.random.PCG64(seed).random_raw(len(sizes)), kind="stable")
        held_out_groups = 1 + int(np.abs(sizes[order].cumsum() - held_out).argmin())
        if held_out_groups == len(sizes):
            raise ValueError(f"group is {group!r}, which leaves the training part empty; want smaller groups")
        held = np.isin(groups, order[:held_out_groups])
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def subset(self, numbers: np.ndarray) -> Self:
        """The items of these numbers, int64 ``(n,)``, as a set of their own."""
        subset = copy(self)
        subset._fingerprint = None
        subset._numbers = self._numbers[numbers]
        subset.labels = None if self.labels is None else self.labels[numbers]
        return subset

    def _alone(self) -> np.ndarray:
        """The number of each item's group where the user names none."""
        return np.arange(len(self))

    def _groups(self, group: str) -> np.ndarray:
        """The number of each item's group."""
        if self._files.names is None:
            raise ValueError(
                f"group is {group!r}, but {self._name} is an array; want a folder of {self.item}s"
            )
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise ValueError(f"group is {group!r}; want a regular expression: {error}") from error
        found = []
        for name in (self._files.names[number] for number in self._numbers.tolist()):
            match = pattern.search(name)
            if match is None:
                raise ValueError(f"group is {group!r}, which isn't found in {disk.printable(name)}")
            found.append(match[min(1, pattern.groups)] or "")
        return np.unique(found, return_inverse=True)[1]

    def check(self, advance: Callable[[int], object] = lambda read: None) -> None:
        """Reads every item.

        Args:
            advance: is called with the number of items read since the last call.

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
            raise disk.Unreadable(bad, skippable, self.item)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify the items (contents, names of files, shape, labels and order).

        All their bytes are read for it, once. A caller who knows it from before, by ``stamp``, may set it.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(self._files.contents(self._numbers) + self._layout().encode())
            digest.update(b"" if self.labels is None else self.labels.tobytes())
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._fingerprint = value

    def _layout(self) -> str:
        """Identifies how items are made of the files' contents."""
        return repr(self.shape)

    @property
    def stamp(self) -> str:
        """32 hex digits that are the same only while the files stay untouched (see ``disk.stamp_of``)."""
        digest = hashlib.sha256(self._files.stamp())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:32]

    @property
    def findings(self) -> dict[str, Any]:
        """How the files were read: numbers used and left out, the reasons, some names."""
        left_out = {
            why: {"files": len(names), "first": sorted(names)[: disk.NAMES_SHOWN]}
            for why, names in sorted(self._files.left_out.items())
        }
        return {
            "used": len(self._files),
            "depth": self.depth,
            "classes": self._files.classes,
            "bad": self._files.bad,
            "left_out": left_out,
        }

    @property
    def depth(self) -> int | None:
        """Bits of a value, where the files' values are integers that this can't be seen from."""
        return None

    def describe(self) -> list[str]:
        """``findings`` in words, in lines."""
        files = self._files
        names = disk.first_names(files.classes or [])
        classes = f", {len(files.classes)} {self.classes} ({names})" if files.classes else ""
        items = f"{disk.quantity(len(files), self.item)} of {disk.printable(self._name)}"
        lines = [f"{items}: {self.summary()}{classes}"]
        if files.no_classes:
            are = f"is no {self.one_class}" if len(files.no_classes) == 1 else f"are no {self.classes}"
            lines.append(f"no labels: {disk.first_names(files.no_classes)} {are} of the run")
        bad = [f"left out {disk.printable(n)}, which can't be read: {why}" for n, why in files.bad.items()]
        return [*lines, *disk.describe(files.left_out), *bad]
