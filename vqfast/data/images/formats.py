"""Images as files: sheets of them, single pictures, or arrays."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from vqfast.data.code_map import png
from vqfast.data.images.sheet import grid, to_uint8
from vqfast.data.protocol import BATCH, Format, Media


def _sheets(batches: Iterator[Tensor]) -> Iterator[bytes]:
    return (grid(batch, columns=math.ceil(math.sqrt(len(batch)))) for batch in batches)


def _pictures(batches: Iterator[Tensor]) -> Iterator[bytes]:
    return (png(image) for batch in batches for image in to_uint8(batch))


def _array(batches: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([to_uint8(batch) for batch in batches]))
    yield buffer.getvalue()


def media(item: Tensor) -> list[Media]:
    """An image ``(C, H, W)``, floats in [0, 1], as a PNG."""
    return [Media("image/png", png(to_uint8(item[None])[0]))]


FORMATS = {  # files are named by the number of their first image
    "grid": Format(lambda numbers: [f"{first:07d}.png" for first in numbers[::BATCH]], _sheets),
    "png": Format(lambda numbers: [f"{number:07d}.png" for number in numbers], _pictures),
    "npy": Format(lambda numbers: [f"{numbers.start:07d}.npy"], _array),
}
