"""Rules of operations that move values and compute nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, channel_index, num_channels, reshaped, shape_of
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum, by_code, concatenated, total


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
    if any(name == "c" for name, _ in axes) or ctx.covers_grid(x):
        x = ctx.linear(x)  # on a larger grid, an activation is applied after the crop
    if all(name == "c" for name, _ in axes):
        index = channel_index(x.layout)
        chosen = index.index_select(dim, torch.arange(start, start + count * step, step)[:count])
        return x.select(chosen.flatten(), (*x.layout[:dim], (("c", count),), *x.layout[dim + 1 :]))
    (axis, _), *others = axes
    if others or axis == "b" or step != 1:
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
    if any(name != "c" for name, _ in x.layout[dim]):
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


@rule("cat")
def cat(ctx: Context, values: list[Sum | Known], dim: int = 0) -> Sum:
    """Channels after channels, or zeros before and after a grid."""
    values, dim = [ctx.linear(v) if isinstance(v, Sum) else v for v in values], dim % len(ctx.shape())
    like = next(value.layout for value in values if isinstance(value, Sum))
    if any(name != "c" for name, _ in like[dim]):
        return cat_zeros(ctx, values, dim)

    def of(size: int) -> Layout:
        return (*like[:dim], (("c", size),), *like[dim + 1 :])

    sizes = [v.value.shape[dim] if isinstance(v, Known) else shape_of(v.layout)[dim] for v in values]
    parts = [ctx.as_sum(value, of(size)) for value, size in zip(values, sizes, strict=True)]
    counts = [part.size("c") for part in parts]
    index = torch.cat([channel_index(part.layout) + sum(counts[:i]) for i, part in enumerate(parts)], dim)
    return concatenated(parts, of(sum(sizes))).select(index.flatten(), of(sum(sizes)))


@rule("stack")
def stack(ctx: Context, values: list[Sum | Known], dim: int = 0) -> Sum:
    """Values one after another along a new dimension."""
    dim %= len(ctx.shape())
    sums = [ctx.linear(value) for value in values if isinstance(value, Sum)]
    if len(sums) < len(values):
        raise Unsupported("a stack with a value that doesn't depend on the codes")
    new = [replace(x, layout=(*x.layout[:dim], (("c", 1),), *x.layout[dim:]), steps=()) for x in sums]
    return cat(ctx, [*new], dim)


def cat_zeros(ctx: Context, values: list[Sum | Known], dim: int) -> Sum:
    """A grid with zeros before and after it, as by ``pad``."""
    (place, grid), *others = [(i, value) for i, value in enumerate(values) if isinstance(value, Sum)]
    if others or any(value.value.any() for value in values if isinstance(value, Known)):
        raise Unsupported("a concatenation along the grid of codes")
    sizes = [0 if isinstance(value, Sum) else value.value.shape[dim] for value in values]
    later_dims = len(ctx.shape()) - 1 - dim
    return pad(ctx, grid, [0, 0] * later_dims + [sum(sizes[:place]), sum(sizes[place:])])


@rule("constant_pad_nd")
def pad(ctx: Context, x: Sum, pads: list[int], value: float = 0) -> Sum:
    """A grid with more positions at its sides, or fewer where a pad is negative."""
    x = ctx.linear(x)
    layout, moves, sides = list(x.layout), {"y": 0, "x": 0}, []
    for i in range(len(pads) // 2):
        dim, (before, after) = len(layout) - 1 - i, pads[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        if all(axis == "c" for axis, _ in layout[dim]):
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
    if not (sides or any(moves.values())):
        return x
    table, tap = x.code_table(), next(iter(x.taps))
    if table is not None and tap[1:] == (0, 0) and ctx.covers_grid(x):
        table = table if x.bias is None else table + x.bias
        bias = torch.full_like(table[0], value) if value != 0 else None
        x = Sum(x.layout, by_code(table - value, (0, 0), x.codes_read()), bias)
    elif value != 0:
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
