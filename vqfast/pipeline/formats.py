"""Images on disk: arrays, single pictures, or sheets of them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vqfast.pipeline import images as pictures
from vqfast.pipeline.codes import BATCH


class Format(NamedTuple):
    """How the images of a shard become files.

    ``names(rows)``: the files' names, by the first image in each; ``files(parts)``: their bytes, from floats
    ``(n, C, H, W)`` in 0..1, ``BATCH`` images a part.
    """

    names: Callable[[range], list[str]]
    files: Callable[[Iterator[Tensor]], Iterator[bytes]]


def _array(parts: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([pictures.pixels(part) for part in parts]))
    yield buffer.getvalue()


FORMATS = {
    "grid": Format(
        lambda rows: [f"{first:07d}.png" for first in rows[::BATCH]],
        lambda parts: (pictures.grid(part, math.ceil(math.sqrt(len(part)))) for part in parts),
    ),
    "npy": Format(lambda rows: [f"{rows.start:07d}.npy"], _array),
    "png": Format(
        lambda rows: [f"{row:07d}.png" for row in rows],
        lambda parts: (pictures.single(image) for part in parts for image in pictures.pixels(part)),
    ),
}


def check_format(name: str, *others: str) -> None:
    """Raises ValueError unless there is such a format, or it's among ``others``."""
    if name not in (*FORMATS, *others):
        raise ValueError(f"format is {name!r}; want one of {', '.join((*FORMATS, *others))}")
