"""Videos as numbered images: those of a folder whose names differ in their last number alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vqfast.data.images.picture import SUFFIXES as IMAGE_SUFFIXES
from vqfast.data.images.picture import picture_facts, read_values

SUFFIXES = IMAGE_SUFFIXES - {".gif", ".apng"}
NUMBERED = re.compile(r"(.*?)(\d+)\D*")  # up to the last number, and that number


class FrameFiles(NamedTuple):
    """A video of numbered images.

    Args:
        files: the images in order.
        size: height and width of a frame.
        grey: whether it has no colour.
        num: frames.
    """

    files: Sequence[Path]
    size: tuple[int, int]
    grey: bool
    num: int
    rate: None = None

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames, uint8 ``(H, W)`` or ``(H, W, 3)``; of 16 bits the high ones.

        Raises:
            Exception: nearly any, if they can't be read.
        """
        for number in numbers:
            pixels = read_values(self.files[number], "L" if self.grey else "RGB")
            if pixels.dtype != np.uint8:
                pixels = (pixels >> 8).clip(0, 255).astype(np.uint8)
            if pixels.shape[:2] != self.size:
                (high, wide), name = pixels.shape[:2], self.files[number].name
                want = f"{self.size[1]}x{self.size[0]}, as {self.files[0].name}"
                raise ValueError(f"{name} is {wide}x{high}; want {want}")
            yield pixels


def open_frames(files: Sequence[Path], *, whole: bool = False) -> FrameFiles:
    """A video of images.

    Args:
        files: in order.
        whole: reads all of them, so that damage shows.

    Raises:
        Exception: nearly any, if a file can't be read.
    """
    facts = [picture_facts(file, whole=False, highest=False) for file in (files[0], files[-1])]
    width, height = facts[0].size
    video = FrameFiles(files, (height, width), all(fact.grey for fact in facts), len(files))
    if whole:
        for _ in video.read(range(len(files))):
            pass
    return video


def sequences(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of images by the video that they make up, each in the order of the last number.

    A video is called as the folder, and where a folder has several, as the folder and what stands before the
    number.

    >>> sequences(["run/10.png", "run/9.png", "b/x_1.png", "b/y_1.png"])
    {'run': ['run/9.png', 'run/10.png'], 'b/x': ['b/x_1.png'], 'b/y': ['b/y_1.png']}
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        if match := NUMBERED.fullmatch(path.stem):
            found.setdefault((str(path.parent), match[1]), []).append((int(match[2]), name))
    parents = [folder for folder, _ in found]
    return {
        folder
        if parents.count(folder) == 1
        else str(PurePosixPath(folder, before.rstrip("_-. ") or "frames")): [
            name for _, name in sorted(frames)
        ]
        for (folder, before), frames in found.items()
    }
