"""Videos in NumPy's files: one of a file, or several of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqfast.data.images.arrays import read_npy, read_npz

KEYS = ("clips", "videos", "video", "frames", "images", "x", "data", "arr_0")
LABEL_KEYS, ACTION_KEYS = ("labels", "y"), ("actions",)
SUFFIXES = {".npy", ".npz"}


class ArrayVideo(NamedTuple):
    """One video of an array.

    Args:
        path: the file.
        array: uint8 ``(N, T, H, W, C)``; None for a ``.npy``, which is mapped whenever it is read.
        place: the video's among the N.
        size: height and width of a frame.
        grey: whether C is 1.
        num: frames.
    """

    path: Path
    array: np.ndarray | None
    place: int
    size: tuple[int, int]
    grey: bool
    num: int
    rate: None = None

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames, uint8 ``(H, W)`` or ``(H, W, 3)``.

        Raises:
            ValueError: the file has changed.
        """
        array = as_clips(read_npy(self.path)) if self.array is None else self.array
        for number in numbers:
            frame = array[self.place, number]
            yield frame[..., 0] if self.grey else frame[..., :3]


class ArrayFacts(NamedTuple):
    """The videos of a file, and what the file says of them.

    Args:
        videos: N of them, ``ArrayVideo``; or one of another kind.
        labels: integers ``(N,)`` or None.
        actions: integers ``(N, T)`` or None.
    """

    videos: Sequence[Any]
    labels: np.ndarray | None
    actions: np.ndarray | None


def open_array(file: Path) -> ArrayFacts:
    """The videos of a ``.npy`` or ``.npz`` file.

    Raises:
        ValueError: it can't be read, or has none.
    """
    labels = actions = None
    if file.suffix.lower() == ".npz":
        found, (labels, actions) = read_npz(file, KEYS, (LABEL_KEYS, ACTION_KEYS))
    else:
        found = read_npy(file)
    clips = as_clips(found)
    num, length, height, width, channels = clips.shape
    array = None if file.suffix.lower() == ".npy" else clips
    videos = [ArrayVideo(file, array, n, (height, width), channels == 1, length) for n in range(num)]
    if actions is not None and actions.shape == found.shape[:1] == (length,):
        actions = actions[None]
    return ArrayFacts(videos, labels, actions)


def as_clips(array: np.ndarray) -> np.ndarray:
    """An array as ``(N, T, H, W, C)``, C 1, 3 or 4.

    Args:
        array: that; or ``(N, T, C, H, W)``, C 1 or 3; ``(T, H, W, C)``, one video; ``(N, T, H, W)``, grey
            ones; or ``(T, H, W)``, a grey one.

    Raises:
        ValueError: it is something else.

    >>> [as_clips(np.zeros(shape, np.uint8)).shape for shape in ((10, 48, 64, 3), (5, 10, 48, 64))]
    [(1, 10, 48, 64, 3), (5, 10, 48, 64, 1)]
    """
    if array.dtype != np.uint8:
        raise ValueError(f"it has dtype {array.dtype}; want uint8, values in 0..255")
    clips = array
    if array.ndim in (3, 4) and not (array.ndim == 4 and array.shape[-1] in (1, 3, 4)):
        clips = array[..., None]
    if clips.ndim == 4:
        clips = clips[None]
    if clips.ndim == 5 and clips.shape[-1] not in (1, 3, 4) and clips.shape[2] in (1, 3):
        clips = np.moveaxis(clips, 2, 4)
    if clips.ndim != 5 or clips.shape[-1] not in (1, 3, 4) or not clips.size:
        raise ValueError(f"it has shape {array.shape}; want (N, T, H, W, C) or (T, H, W, C), C 1, 3 or 4")
    return clips
