"""Actions beside videos: an integer for each frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vqfast.data.images.arrays import read_npy
from vqfast.files import read_file

SUFFIXES = (".actions.npy", ".actions.csv")
CSV_BYTES = 256 << 20


def read_actions(path: Path) -> np.ndarray:
    """The integers of a file, in their order: int64 ``(n,)``.

    Args:
        path: a ``.npy``, or a ``.csv`` with numbers between commas or in lines, maybe below a line of words.

    Raises:
        ValueError: it has something else, or a number below 0.
    """
    if path.suffix.lower() == ".npy":
        found = np.asarray(read_npy(path))
    else:
        lines = [line for line in read_file(path, CSV_BYTES).decode("utf-8-sig").splitlines() if line.strip()]
        if lines and not lines[0].replace(",", "").replace(" ", "").lstrip("-").isdigit():
            lines = lines[1:]
        try:
            found = np.array([int(word) for line in lines for word in line.rstrip(", ").split(",")])
        except ValueError as error:
            raise ValueError(f"{path}: {error}; want integers") from error
    return checked_actions(found, str(path))


def checked_actions(actions: np.ndarray, name: str) -> np.ndarray:
    """Actions of any shape as int64 ``(n,)``.

    Raises:
        ValueError: they are no integers, there are none, or one is below 0.
    """
    if actions.dtype.kind not in "iu" or not actions.size:
        raise ValueError(f"{name} has {actions.dtype} of shape {actions.shape}; want integers, one a frame")
    if actions.min() < 0 or actions.max() >= 2**31:
        raise ValueError(
            f"{name} has the action {actions.min()}..{actions.max()}; want 0 or more, below 2^31"
        )
    return actions.astype(np.int64).ravel()
