"""Rules of operations that move values and compute nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import (
    Layout,
    Unsupported,
    channel_index,
    num_channels,
    of_channels,
    reshaped,
    shape_of,
)
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Sum, by_code, total


@rule("clone", "detach", "alias", "contiguous", "lift_fresh_copy")
def same(ctx: Context, x: Sum, *_: Any, **__: Any) -> Sum:
    """A copy."""
    return x


@rule("_to_copy")
def to_copy(ctx: Context, x: Sum, dtype: torch.dtype | None = None, **_: Any) -> Sum:
    """Another dtype: any for the table of a code, else only the network's."""
    if x.code_table() is not None and dtype is not None and (x.bias is None or dtype.is_floating_point):
        return x.map_columns(lambda columns: columns.to(dtype), x.layout)
    if dtype is not None and dtype != ctx.dtype:
        raise Unsupported(f"a conversion to {dtype} in a network of {ctx.dtype}")
    return x


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def view(ctx: Context, x: Sum, *_: Any) -> Sum:
    """Another shape."""
    x = ctx.linear(x)
    return x.select(torch.arange(x.size("c")), reshaped(x.layout, ctx.shape()))


@rule("permute")
def permute(ctx: Context, x: Sum, dims: list[int]) -> Sum:
    """Dimensions in another order."""
    x = ctx.linear(x)
    layout = tuple(x.layout[dim] for dim in dims)
    return x.select(channel_index(x.layout).permute(dims).flatten(), layout)


@rule("transpose")
def transpose(ctx: Context, x: Sum, a: int, b: int) -> Sum:
    """Two dimensions exchanged."""
    dims = list(range(len(x.layout)))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(ctx, x, dims)


@rule("t")
def t(ctx: Context, x: Sum) -> Sum:
    """A matrix transposed."""
    return transpose(ctx, x, 0, 1)


@rule("unsqueeze")
def unsqueeze(ctx: Context, x: Sum, dim: int) -> Sum:
    """A new dimension of size 1."""
    x, at = ctx.linear(x), dim % (len(x.layout) + 1)
    return x.select(torch.arange(x.size("c")), (*x.layout[:at], (), *x.layout[at:]))


@rule("squeeze")
def squeeze(ctx: Context, x: Sum, *_: Any) -> Sum:
    """Dimensions of size 1 removed."""
    return view(ctx, x)


@rule("expand")
def expand(ctx: Context, x: Sum, *_: Any, **__: Any) -> Sum:
    """Channels repeated."""
    return ctx.as_sum(x, ctx.layout(x))


def narrowed(ctx: Context, x: Sum, dim: int, start: int, count: int, step: int = 1) -> Sum:
    """``count`` elements of a dimension from ``start`` on, ``step`` apart."""
    dim %= len(x.layout)
    axes = x.layout[dim]
    if count == shape_of(x.layout)[dim]:
        return x
    if of_channels(axes) or ctx.covers_grid(x):
        x = ctx.linear(x)  # on a larger grid, an activation is applied after the crop
    if of_channels(axes):
        index = channel_index(x.layout)
        chosen = index.index_select(dim, torch.arange(start, start + count * step, step)[:count])
        return x.select(chosen.flatten(), (*x.layout[:dim], (("c", count),), *x.layout[dim + 1 :]))
    (axis, _), *others = [each for each in axes if each[1] > 1] or axes
    if others:
        raise Unsupported(
            f"a part of a grid in raster order; want shape=({math.prod(ctx.grid)},), a sequence"
        )
    if axis == "b" or step != 1:
        raise Unsupported("a part of the samples, or a grid with a stride")
    x = replace(x, layout=(*x.layout[:dim], ((axis, count),), *x.layout[dim + 1 :]))
    return x.moved(start if axis == "y" else 0, start if axis == "x" else 0)


@rule("slice")
def slice_(
    ctx: Context, x: Sum, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Sum:
    """A slice of a dimension."""
    size = shape_of(x.layout)[dim]
    start, end, step = slice(start, end, step).indices(size)
    return narrowed(ctx, x, dim, start, len(range(start, end, step)), step)


@rule("copy")
def copy(ctx: Context, _: Any, x: Sum, *__: Any) -> Sum:
    """A value that is written over another one."""
    return ctx.as_sum(x, ctx.layout(x))


@rule("slice_scatter")
def slice_scatter(
    ctx: Context,
    x: Any,
    part: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Sum:
    """A grid, some rows or columns of which are written over: the difference is added there."""
    axes = (x if isinstance(x, Sum) else part).layout[dim]
    if len(axes) != 1 or axes[0][0] not in ("y", "x") or step != 1:
        raise Unsupported("a part of the channels or samples that is written over")
    size = ctx.shape()[dim]
    ((axis, _),) = axes
    like = x.layout if isinstance(x, Sum) else part.layout
    layout = (*like[:dim], ((axis, size),), *like[dim + 1 :])
    whole, chosen = ctx.as_sum(x, layout), range(*slice(start, end).indices(size))
    before = narrowed(ctx, whole, dim, chosen.start, len(chosen))
    change = total([ctx.as_sum(part, before.layout), before.map_columns(torch.neg, before.layout)])
    change.taps = {tap: matrix for tap, matrix in change.taps.items() if (matrix != 0).any()}
    offset = (-chosen.start, 0) if axis == "y" else (0, -chosen.start)
    change = ctx.readable(change, [(1, 1), (-1, -1)]) if change.taps else ctx.bounded(change)
    return total([whole, replace(change.moved(*offset), layout=layout)])


@rule("select")
def select(ctx: Context, x: Sum, dim: int, index: int) -> Sum:
    """One element of a dimension, which is removed."""
    x = narrowed(ctx, x, dim, index % shape_of(x.layout)[dim], 1)
    if not of_channels(x.layout[dim]):
        raise Unsupported("a single row, column or sample")
    dim %= len(x.layout)
    return x.select(torch.arange(x.size("c")), (*x.layout[:dim], *x.layout[dim + 1 :]))


@rule("unbind")
def unbind(ctx: Context, x: Sum, dim: int = 0) -> list[Sum]:
    """Every element of a dimension."""
    return [select(ctx, x, dim, i) for i in range(shape_of(x.layout)[dim])]


@rule("split", "split_with_sizes")
def split(ctx: Context, x: Sum, sizes: int | list[int], dim: int = 0) -> list[Sum]:
    """Parts of a dimension."""
    x, size = ctx.linear(x), shape_of(x.layout)[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - first) for first in range(0, size, sizes)]
    return [narrowed(ctx, x, dim, sum(sizes[:i]), count) for i, count in enumerate(sizes)]


def with_axis(ctx: Context, layout: Layout, dim: int) -> Layout:
    """The layout, in which a dimension without axes is the axis of the grid that has one position.

    A view leaves it without, since it can't tell it from other dimensions of one element.
    """
    named = {name for axes in layout for name, _ in axes}
    found = [name for name, n in zip("yx", ctx.grid, strict=True) if n == 1 and name not in named]
    if layout[dim] or not found[-len(ctx.spatial) :]:
        return layout
    return (*layout[:dim], ((found[-1], 1),), *layout[dim + 1 :])


@rule("constant_pad_nd")
def pad(ctx: Context, x: Sum, pads: list[int], value: float | Tensor = 0) -> Sum:
    """A grid with more positions at its sides, or fewer where a pad is negative.

    As a tensor, the value has a number for each channel.
    """
    x = ctx.linear(x)
    layout, moves, sides = list(x.layout), {"y": 0, "x": 0}, []
    whole = True  # whether what is read outside of x is outside of the grid too
    for i in range(len(pads) // 2):
        dim, (before, after) = len(layout) - 1 - i, pads[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        layout = list(with_axis(ctx, tuple(layout), dim))
        if of_channels(layout[dim]) and isinstance(value, (int, float)):
            x = pad_channels(x, dim, before, after, value)
            layout = list(x.layout)
            continue
        if len(layout[dim]) != 1 or layout[dim][0][0] not in moves:
            raise Unsupported("padding of samples")
        ((axis, size),) = layout[dim]
        layout[dim] = ((axis, size + before + after),)
        moves[axis] -= before
        outwards = [-1] * (before > 0) + [1] * (after > 0)
        sides += [(way, 0) if axis == "y" else (0, way) for way in outwards]
        at = {tap[1 if axis == "y" else 2] for tap in x.taps}
        full = ctx.grid["yx".index(axis)] - size
        whole &= (before <= 0 or at <= {0}) and (after <= 0 or at <= {full})
    if not (sides or any(moves.values())):
        return x
    table, tap = x.code_table(), next(iter(x.taps), (0, 0, 0))
    zero = not isinstance(value, Tensor) and value == 0
    if table is not None and ctx.inside(x) and whole:
        table = table if x.bias is None else table + x.bias
        padding = torch.as_tensor(value, device=table.device).to(table.dtype).expand(table.shape[1])
        taps = by_code(table - padding, tap[1:], x.codes_read())
        x = Sum(x.layout, taps, None if zero else padding, stride=x.stride)
    elif not zero:
        raise Unsupported(f"padding by {value}")
    elif sides:
        x = ctx.readable(x, sides)
    return x.select(torch.arange(x.size("c")), tuple(layout)).moved(moves["y"], moves["x"])


def pad_channels(x: Sum, dim: int, before: int, after: int, value: float) -> Sum:
    """More channels with this value before and after those of a dimension."""
    layout = (*x.layout[:dim], (("c", num_channels(x.layout[dim]) + before + after),), *x.layout[dim + 1 :])
    sizes = [num_channels(each) for each in x.layout]

    def padded(columns: Tensor, by: float) -> Tensor:
        pads = [0, 0] * (len(sizes) - 1 - dim) + [before, after]
        return F.pad(columns.view(-1, *sizes), pads, value=by).flatten(1)

    some_columns = next(iter(x.taps.values()))
    bias = padded(torch.zeros_like(some_columns[:1]), value)[0] if value != 0 else None
    return total([x.map_columns(partial(padded, by=0), layout), Sum(layout, {}, bias)])
