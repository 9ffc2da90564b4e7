"""Rules that join tensors: channels after channels, and what comes before or after a grid."""

from __future__ import annotations

from dataclasses import replace

import torch

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, channel_index, of_channels, shape_of
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.shapes import pad, with_axis
from vqfast.sampling.trace.values import Known, Sum, concatenated, total


@rule("cat")
def cat(ctx: Context, values: list[Sum | Known], dim: int = 0) -> Sum:
    """Channels after channels, or zeros or a start before a grid."""
    values, dim = [ctx.linear(v) if isinstance(v, Sum) else v for v in values], dim % len(ctx.shape())
    (at, first), *_ = [(i, value) for i, value in enumerate(values) if isinstance(value, Sum)]
    like = with_axis(ctx, first.layout, dim)
    values[at] = replace(first, layout=like)
    if not of_channels(like[dim]):
        return cat_constants(ctx, values, dim)

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
    like = next(value.layout for value in values if isinstance(value, Sum))
    sums = [ctx.linear(value) if isinstance(value, Sum) else ctx.as_sum(value, like) for value in values]
    new = [replace(x, layout=(*x.layout[:dim], (("c", 1),), *x.layout[dim:]), steps=()) for x in sums]
    return cat(ctx, [*new], dim)


def cat_constants(ctx: Context, values: list[Sum | Known], dim: int) -> Sum:
    """A grid with zeros after it, and zeros, or a start that is learned, before it."""
    (place, grid), *others = [(i, value) for i, value in enumerate(values) if isinstance(value, Sum)]
    before, after = values[:place], values[place + 1 :]
    if others or any(value.value.any() for value in after if isinstance(value, Known)):
        raise Unsupported("a concatenation along the grid of codes")
    sizes = [0 if isinstance(value, Sum) else value.value.shape[dim] for value in values]
    later_dims = len(ctx.shape()) - 1 - dim
    pads = [0, 0] * later_dims + [sum(sizes[:place]), sum(sizes[place:])]
    start = [each for each in before if isinstance(each, Known)]
    if not any(each.value.any() or each.needs for each in start):
        return pad(ctx, grid, pads)
    if len(start) > 1 or len(grid.layout[dim]) != 1:
        raise Unsupported("several values before the grid of codes")
    ((axis, _),) = grid.layout[dim]
    first = [ctx.as_sum(each, _cut(grid.layout, dim, 1)) for each in _along(start[0], dim)]
    if len(first) == 1 and not first[0].taps and first[0].labels is None and grid.code_table() is not None:
        return pad(ctx, grid, pads, 0 if first[0].bias is None else first[0].bias)
    return total([pad(ctx, grid, pads), *_before(ctx, first, axis, _cut(grid.layout, dim, ctx.shape()[dim]))])


def _cut(layout: Layout, dim: int, count: int) -> Layout:
    """The layout with another size of the only axis of a dimension."""
    ((axis, _),) = layout[dim]
    return (*layout[:dim], ((axis, count),), *layout[dim + 1 :])


def _along(value: Known, dim: int) -> list[Known]:
    """The slices of a dimension; a single one is the value of its node."""
    count = value.value.shape[dim]
    parts = value.value.split(1, dim)
    return [Known(part, value.needs, value.node if count == 1 else None) for part in parts]


def _before(ctx: Context, first: list[Sum], axis: str, layout: Layout) -> list[Sum]:
    """Values at the first positions along an axis of the grid, each the same for all others.

    That a position is among the first is what ``1 - ones[position - n]`` says.
    """
    parts = []
    for number, value in enumerate(first):
        if value.taps:
            raise Unsupported("a start that differs by position or condition")
        value = replace(value, layout=layout)
        ends = [(0, -n) if axis == "x" else (-n, 0) for n in (number, number + 1)]
        after = [value if n == (0, 0) else ctx.bounded(value, *n) for n in ends]
        parts += [after[0], after[1].map_columns(torch.neg, layout)]
    return parts
