"""Rules of values on coarser and finer grids: strided and transposed convolutions, pooling, upsampling.

A value of stride s has a position for every s-th row and column of the grid of codes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, shape_of
from vqfast.sampling.trace.linear import correlation, spatial_axes, times
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum, selects_channels, total


@rule("convolution")
def convolution(
    ctx: Context, x: Sum, weight: Known, bias: Known | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, _: list[int], groups: int,
) -> Sum:  # fmt: skip
    """A convolution, with a stride or transposed."""
    by = single_stride(ctx, stride)
    if not transposed:
        return coarser(ctx, correlation(ctx, x, weight, bias, padding, dilation, groups), by)
    if isinstance(weight, Sum) or isinstance(bias, Sum) or groups > 1:
        raise Unsupported("a transposed convolution with groups, or whose weight depends on the codes")
    kernel = weight.fixed
    if kernel.ndim == 3:
        kernel, padding, dilation = kernel.unsqueeze(2), [0, *padding], [1, *dilation]
    taps = {
        (padding[0] - i * dilation[0], padding[1] - j * dilation[1]): kernel[:, :, i, j]
        for i, j in product(*map(range, kernel.shape[2:]))
    }
    return finer(ctx, x, by, taps, None if bias is None else bias.fixed)


def single_stride(ctx: Context, strides: list[int]) -> int:
    """The stride of rows and columns; a sequence, or a grid of one row, has no other rows."""
    used = {s for s, n in zip(strides, ctx.grid[-len(strides) :], strict=True) if n > 1} or {1}
    if len(used) > 1:
        raise Unsupported(f"a convolution of stride {strides}, not the same for rows and columns")
    return used.pop()


def coarser(ctx: Context, value: Sum, by: int) -> Sum:
    """Every ``by``-th row and column of a value, as its layout has them already."""
    if by == 1:
        return value
    stride = value.stride * by
    taps = {
        tap: matrix
        for tap, matrix in value.taps.items()  # others find nothing but zeros
        if all(offset % math.gcd(stride, ctx.stride_of(tap[0])) == 0 for offset in tap[1:])
    }
    return replace(value, taps=taps, stride=stride, steps=())


def finer(
    ctx: Context, x: Sum, by: int, taps: dict[tuple[int, int], Tensor], bias: Tensor | None = None
) -> Sum:
    """The value with ``by - 1`` zeros between neighbours, read at some offsets, each times a matrix.

    Args:
        ctx: the lowering.
        x: the value.
        by: divides the value's stride.
        taps: matrices ``(in, out)`` by offset in positions of the finer grid.
        bias: ``(out,)``, or ``None``.
    """
    if x.stride % by:
        raise Unsupported("values on a finer grid than that of the codes")
    x = ctx.linear(x)
    own = all(tap[1:] == (0, 0) and ctx.stride_of(tap[0]) == x.stride for tap in x.taps)
    if not (own and selects_channels(x) and ctx.covers_grid(x)):
        x = ctx.step(x)  # so that it is zero at positions between those that it has
    sizes, spatial = ctx.shape(), spatial_axes(x.layout)
    places = [((axis, size),) for axis, size in zip(spatial, sizes[2:], strict=True)]
    layout: Layout = (x.layout[0], (("c", sizes[1]),), *places)
    fine = replace(x, stride=x.stride // by, steps=())
    parts = [
        fine.map_columns(partial(times, by=matrix), layout).moved(
            *(tap if spatial != ("x", "y") else tap[::-1])
        )
        for tap, matrix in taps.items()
        if (matrix != 0).any()
    ]
    return total([Sum(layout, {}, bias), *parts])


@rule("upsample_nearest1d", "upsample_nearest2d")
def upsample_nearest(ctx: Context, x: Sum, *_: Any) -> Sum:
    """Each value repeated in a square."""
    old, new = shape_of(x.layout)[2:], ctx.shape()[2:]
    by = single_stride(ctx, [b // a for a, b in zip(old, new, strict=True)])
    if any(b != a * by for a, b, n in zip(old, new, ctx.grid[-len(new) :], strict=True) if n > 1):
        raise Unsupported(f"upsampling of {old} values to {new}")
    rows = by if len(new) == 2 and ctx.grid[0] > 1 else 1
    identity = ctx.identity(x.size("c"))
    return finer(ctx, x, by, {(-i, -j): identity for i, j in product(range(rows), range(by))})


@rule("avg_pool1d", "avg_pool2d")
def avg_pool(
    ctx: Context, x: Sum, kernel: list[int], stride: list[int] | None = None,
    padding: list[int] | None = None, *options: Any,
) -> Sum:  # fmt: skip
    """Means of windows: a convolution."""
    zeros, ones = [0] * len(kernel), [1] * len(kernel)
    if any(padding or []) or any(options[:1]):
        raise Unsupported("pooling with padding or an incomplete window")
    identity = ctx.identity(x.size("c"))
    mean = identity.view(*identity.shape, *ones).expand(-1, -1, *kernel) / math.prod(kernel)
    weight = Known(mean, frozenset())
    return convolution(ctx, x, weight, None, stride or kernel, zeros, ones, False, zeros, 1)
