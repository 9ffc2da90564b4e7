"""Images as files: sheets of them, single pictures, or arrays."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from vqfast.data.images.sheet import grid, png, to_uint8
from vqfast.data.protocol import BATCH, Format


def _sheets(batches: Iterator[Tensor]) -> Iterator[bytes]:
    return (grid(batch, columns=math.ceil(math.sqrt(len(batch)))) for batch in batches)


def _pictures(batches: Iterator[Tensor]) -> Iterator[bytes]:
    return (png(image) for batch in batches for image in to_uint8(batch))


def _array(batches: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([to_uint8(batch) for batch in batches]))
    yield buffer.getvalue()


FORMATS = {  # files are named by the number of their first image
    "grid": Format(lambda numbers: [f"{first:07d}.png" for first in numbers[::BATCH]], _sheets),
    "png": Format(lambda numbers: [f"{number:07d}.png" for number in numbers], _pictures),
    "npy": Format(lambda numbers: [f"{numbers.start:07d}.npy"], _array),
}
