"""Values of more positions than the grid has, as inputs padded by a whole receptive field give them.

Before the grid such a value reads nothing but zeros, so that it is a constant there: the activated bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vqfast.sampling.activations import activate
from vqfast.sampling.trace.layout import Layout
from vqfast.sampling.trace.values import FIRST_MAP, ONES, Sum, selects_channels


def before_grid(value: Sum, grid: tuple[int, ...]) -> tuple[int, int] | None:
    """How many rows and columns of a value lie before the grid; ``None`` if none, or not constant there."""
    rows, columns = value.size("y") - grid[0], value.size("x") - grid[1]
    if (
        min(rows, columns) < 0
        or rows == columns == 0
        or value.stride > 1
        or value.labels is not None
        or not value.taps
    ):
        return None
    outside = all(
        source > FIRST_MAP and (rows == 0 or dy <= -rows) and (columns == 0 or dx <= -columns)
        for source, dy, dx in value.taps
    )
    return (rows, columns) if outside else None


def extended_step(value: Sum, before: tuple[int, int], step: Callable[[Sum], Sum]) -> Sum:
    """The value, of which ``step`` computes the part on the grid."""
    rows, columns = before
    inside = replace(value.moved(rows, columns), layout=_shorter(value.layout, before), steps=value.steps)
    computed = step(inside)
    value.steps = inside.steps
    result = replace(computed.moved(-rows, -columns), layout=value.layout)
    like = next(iter(computed.taps.values()))
    width = next(iter(value.taps.values())).shape[1]
    bias = like.new_zeros(width) if value.bias is None else value.bias.to(like.dtype)
    constant = activate(bias[None], value.activation)
    if not constant.any():
        return result
    return replace(result, taps={**result.taps, (ONES, -rows, -columns): -constant}, bias=constant[0])


def is_step_and_constant(value: Sum) -> bool:
    """Whether a value is what ``extended_step`` returns."""
    steps = {tap: matrix for tap, matrix in value.taps.items() if tap[0] != ONES}
    return value.labels is None and bool(steps) and selects_channels(Sum(value.layout, steps))


def _shorter(layout: Layout, before: tuple[int, int]) -> Layout:
    """The layout without the rows and columns before the grid."""
    less = dict(zip("yx", before, strict=True))
    return tuple(tuple((axis, n - less.get(axis, 0)) for axis, n in dim) for dim in layout)
