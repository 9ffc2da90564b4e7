"""Image files under a folder: which are used, which are left out and why, and their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

import numpy as np

from vqfast.data import disk
from vqfast.data.images.picture import FORMATS, SUFFIXES, PictureFacts, picture_facts, read_values
from vqfast.data.images.pixels import as_unit, first_outside, squares

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class FolderPixels:
    """Image files under a folder, or one image file; see ``Pixels``.

    Args:
        root: the folder or the file.
        size: pixels along a side of the squares that the images become; None leaves them as they are.
        depth: bits of a channel in files with more than 8; None takes as many as their largest value needs.
        skip_bad: whether to leave out files that can't be read, which takes reading all of them; or the names
            of the bad files that were found before, each with the reason.
        labelled: whether labels come from elsewhere; sub-folders then are no classes.
        classes: the names of the classes, in the order of their labels; None takes the folders found. Where
            other folders are found, they are in ``no_classes`` and there are no labels.

    Raises:
        Unreadable: files can't be read.
        ValueError: there is no image, or the images have unequal sizes.
    """

    def __init__(
        self,
        root: Path,
        size: int | None,
        depth: int | None,
        skip_bad: bool | Mapping[str, str],
        labelled: bool,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.skippable = skip_bad is False
        files, self.left_out, unseen = self._found(root)
        bad = {_as_folder_unless_image(name): why for name, why in unseen.items()}
        split = _training_split([*files, *bad])
        for name in [n for n in (*files, *bad) if not n.startswith(split)]:
            files.pop(name, None)
            bad.pop(name, None)
            self._leave_out(f"outside {split}, the split that is read", name)
        facts, bad = self._inspect(files, bad, depth, skip_bad)
        folders = _class_folders([n[len(split) :] for n in (*facts, *bad)], labelled)
        for name in [n for n in (*facts, *bad) if folders and "/" not in n[len(split) :]]:
            facts.pop(name, None)
            bad.pop(name, None)
            self._leave_out("beside the class folders", name)
        known = skip_bad if isinstance(skip_bad, Mapping) else {}
        unknown = {str(self.root / name): why for name, why in bad.items() if name not in known}
        if unknown and skip_bad is not True:
            raise disk.Unreadable(unknown, self.skippable)
        self.bad = bad
        self.names = list(facts)
        if not facts:
            self._refuse_as_empty(root)
        self.files = {name: files[name] for name in self.names}
        self.used = np.flatnonzero([name not in bad for name in sorted({*facts, *bad})])
        tops = [name[len(split) :].split("/")[0] for name in self.names]
        self._number_classes(tops if folders else [], classes)
        self.mode = "L" if all(fact.grey for fact in facts.values()) else "RGB"
        highest = max((max(1, fact.highest) for fact in facts.values() if fact.wide), default=0)
        self.depth = (depth or highest.bit_length()) if highest else None
        width, height = _common_size(self.root, facts) if size is None else (size, size)
        self.size, self.shape = size, (1 if self.mode == "L" else 3, height, width)

    def _found(self, root: Path) -> disk.Found:
        """The files, see ``disk.files_under``; also sets ``root``, which their names are relative to."""
        if root.is_file():
            self.root = root.parent
            return {root.name: root.stat()}, {}, {}
        self.root = root
        return disk.files_under(root)

    def _source(self, name: str) -> Path | BinaryIO:
        """Where the bytes of a file are."""
        return self.root / name

    def _counts(self, name: str) -> bool:
        """Whether a file that can't be read counts as a bad image."""
        return is_image_name(name)

    def __len__(self) -> int:
        return len(self.names)

    def stamp(self) -> bytes:
        return disk.stamp_of(self.files)

    def contents(self, numbers: np.ndarray) -> bytes:
        head = repr((self.mode, self.depth)).encode()
        return head + disk.contents_digest(self.root, [self.names[number] for number in numbers])

    def read(self, numbers: np.ndarray) -> np.ndarray:
        images, bad = [], {}
        for name in (self.names[number] for number in numbers):
            try:
                images.append(self._decoded(name))
            except Exception as error:  # a decoder raises nearly anything on bad bytes
                bad[str(self.root / name)] = disk.one_line(error)
        if bad:
            raise disk.Unreadable(bad, self.skippable)
        return np.stack(images)

    def _decoded(self, name: str) -> np.ndarray:
        pixels = np.atleast_3d(read_values(self._source(name), self.mode, self.size)).transpose(2, 0, 1)
        if self.depth is not None:  # one channel at a time, as wide files may be large
            pixels = np.stack([self._as_unit(channel) for channel in pixels])
        if len(pixels) == 1:
            pixels = pixels.repeat(self.shape[0], axis=0)
        if pixels.shape != self.shape:
            raise ValueError(f"it has shape {pixels.shape}; want {self.shape} as when loaded")
        return pixels

    def _as_unit(self, channel: np.ndarray) -> np.ndarray:
        """Integers ``(H, W)`` as float32 in [0, 1]; a square of ``size``, if that is given."""
        white = 255 if channel.dtype == np.uint8 else 2 ** (self.depth or 0) - 1
        if (place := first_outside(channel, white)) is not None:
            raise ValueError(f"it has the value {channel[place]}; want integers of {self.depth} bits")
        unit = as_unit(channel, white)
        return unit if self.size is None else squares(unit[None], self.size)[0]

    def _refuse_as_empty(self, root: Path) -> NoReturn:
        lines = disk.describe(self.left_out)
        if self.bad:
            first, why = next(iter(self.bad.items()))
            lines.append(f"{len(self.bad)} can't be read, the first {disk.printable(first)}: {why}")
        also = "".join(f"; {line}" for line in lines)
        raise ValueError(f"{root} has no image in it; want {', '.join(FORMATS)} files{also}")

    def _number_classes(self, tops: Sequence[str], classes: Sequence[str] | None) -> None:
        """Labels images by the first-level folders that they are in, if these are classes."""
        label_of = {name: label for label, name in enumerate(classes or sorted(set(tops)))}
        self.no_classes = sorted(set(tops) - label_of.keys())
        labelled = bool(tops) and not self.no_classes
        self.classes = list(label_of) if labelled else None
        self.labels = np.array([label_of[top] for top in tops]) if labelled else None

    def _leave_out(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)

    def _inspect(
        self,
        files: Iterable[str],
        unseen: Mapping[str, str],
        depth: int | None,
        skip_bad: bool | Mapping[str, str],
    ) -> tuple[dict[str, PictureFacts], dict[str, str]]:
        """Facts of the images, and bad files with the reasons. A bad file counts as an image by its name."""
        facts, bad = {}, {} if isinstance(skip_bad, bool) else dict(skip_bad)
        failed = dict(unseen)
        for name in files:
            if name not in bad:
                try:
                    facts[name] = picture_facts(
                        self._source(name), whole=skip_bad is True, highest=depth is None
                    )
                except Exception as error:  # a decoder raises nearly anything on bad bytes
                    failed[name] = disk.one_line(error)
        for name, why in failed.items():
            if name.endswith("/") or self._counts(name):
                bad[name] = why
            else:
                self._leave_out("of no image format that is read", name)
        return facts, bad


def is_image_name(name: str) -> bool:
    """Whether a file should be an image by its suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _as_folder_unless_image(name: str) -> str:
    """A name that can't be looked at, with a slash at its end where it may be a folder of images."""
    return name if is_image_name(name) else f"{name.rstrip('/')}/"


def _training_split(names: Iterable[str]) -> str:
    """``"train/"`` where the first-level folders with images are splits, else ``""``."""
    tops = {n.split("/")[0] for n in names if "/" in n and (is_image_name(n) or not PurePosixPath(n).suffix)}
    bare = {top: re.sub(r"[\W\d_]+$", "", top.lower()) for top in tops}  # train2017 is train
    training = [top for top, name in bare.items() if name in ("train", "training")]
    return f"{training[0]}/" if len(training) == 1 and set(bare.values()) <= SPLITS else ""


def _class_folders(names: Iterable[str], labelled: bool) -> bool:
    """Whether first-level folders are classes: all images are in folders, or most are, in several."""
    tops = Counter(name.split("/")[0] if "/" in name else "" for name in names)
    beside = tops.pop("", 0)
    return bool(tops) and not labelled and (not beside or (len(tops) > 1 and beside < tops.total()))


def _common_size(root: Path, facts: Mapping[str, PictureFacts]) -> tuple[int, int]:
    first, size = next((name, fact.size) for name, fact in facts.items())
    for name, fact in facts.items():
        if fact.size != size:
            raise ValueError(
                f"{root} has images of unequal size: {disk.printable(first)} is {size[0]}x{size[1]}, "
                f"{disk.printable(name)} is {fact.size[0]}x{fact.size[1]}; --size makes them equal"
            )
    return size
