"""Where the kernels of the Triton executor find a value."""

# mypy: ignore-errors
# Triton compiles these functions; their arguments have no Python types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cells(place, y, x, image, batch):
    """The unit where a place's values for row ``y``, columns ``x`` and each image begin."""
    # fields in the order of PLACE
    rows = tl.load(place + 2).to(tl.int32)
    columns = tl.load(place + 3).to(tl.int32)
    slot = (y + tl.load(place + 4).to(tl.int32) + rows) % rows
    cell = slot * columns + (x + tl.load(place + 5).to(tl.int32)) % columns
    return tl.load(place) + (cell.to(tl.int64) * batch + image) * tl.load(place + 1)
