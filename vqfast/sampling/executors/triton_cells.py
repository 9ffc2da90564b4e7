"""Where the kernels of the Triton executor find a value."""

# mypy: ignore-errors
# Triton compiles these functions; their arguments have no Python types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divided(n, size, reciprocal):
    """``n // size`` and ``n % size`` in a few multiplications, for ``reciprocal`` ``2 ** 31 // size``.

    A division would take much longer, and the compiler may move it to where there is no time.
    """
    quotient = ((n.to(tl.int64) * reciprocal) >> 31).to(tl.int32)  # it may lack 1
    rest = n - quotient * size
    return tl.where(rest < size, quotient, quotient + 1), tl.where(rest < size, rest, rest - size)


@triton.jit
def cells(place, y, x, image, batch):
    """The unit where a place's values for row ``y``, columns ``x`` and each image begin."""
    # fields in the order of PLACE
    rows = tl.load(place + 2).to(tl.int32)
    columns = tl.load(place + 3).to(tl.int32)
    _, slot = divided(y + tl.load(place + 4).to(tl.int32), rows, tl.load(place + 6))
    _, column = divided(x + tl.load(place + 5).to(tl.int32), columns, tl.load(place + 7))
    cell = slot * columns + column
    return tl.load(place) + (cell.to(tl.int64) * batch + image) * tl.load(place + 1)
