"""Rules of linear maps with constant weights: convolutions and matrix products."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from vqfast.sampling.trace.arithmetic import add, scaled
from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, channel_index, num_channels, of_channels
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum, is_identity, total


def correlation(
    ctx: Context, x: Sum, weight: Known, bias: Known | None, padding: list[int], dilation: list[int],
    groups: int,
) -> Sum:  # fmt: skip
    """A convolution without a stride: a product at each position of the kernel.

    The tensor may hold the grid transposed.
    """
    if isinstance(weight, Sum) or isinstance(bias, Sum):
        raise Unsupported("a convolution whose weight depends on the codes")
    spatial = spatial_axes(x.layout)
    kernel = without_groups(weight.fixed, groups)
    if len(spatial) == 1:
        kernel, padding, dilation = kernel.unsqueeze(2), [0, *padding], [1, *dilation]
    sizes = ctx.shape()
    places = [((axis, size),) for axis, size in zip(spatial, sizes[2:], strict=True)]
    layout = (x.layout[0], (("c", sizes[1]),), *places)
    taps = {}
    for i, j in product(*map(range, kernel.shape[2:])):
        offset = i * dilation[0] - padding[0], j * dilation[1] - padding[1]
        if (kernel[:, :, i, j] != 0).any():
            taps[offset[::-1] if spatial == ("x", "y") else offset] = kernel[:, :, i, j].T
    if kernel.shape[2:] == (1, 1) and not any(padding):
        x = ctx.multiplicand(x, len(kernel))
    else:
        x = ctx.readable(x, list(taps) if any(padding) else [])
    parts = [x.map_columns(partial(times, by=by), layout).moved(*at) for at, by in taps.items()]
    return total([Sum(layout, {}, None if bias is None else bias.fixed), *parts])


def spatial_axes(layout: Layout) -> tuple[str, ...]:
    """The axis that each spatial dimension of a convolution's input runs through.

    Raises:
        Unsupported: the dimensions aren't samples, channels and the axes of the grid.
    """
    names = [{name for name, n in dim if n > 1} for dim in layout]
    spatial: tuple[str, ...] = ("y", "x") if len(names) == 4 else ("x",)
    if len(names) == 4 and ("x" in names[2] or "y" in names[3]):
        spatial = ("x", "y")
    expected = [{"b"}, {"c"}, *({axis} for axis in spatial)]
    if any(not found <= allowed for found, allowed in zip(names, expected, strict=True)):
        raise Unsupported(f"a convolution of dimensions {names}")
    return spatial


def without_groups(weight: Tensor, groups: int) -> Tensor:
    """The weight of a convolution with groups as that of one without."""
    if groups == 1:
        return weight
    out, inputs, *size = weight.shape
    whole = weight.new_zeros(out, groups, inputs, *size)
    for group, part in enumerate(weight.chunk(groups)):
        count = out // groups
        whole[group * count : (group + 1) * count, group] = part
    return whole.flatten(1, 2)


def times(matrix: Tensor, by: Tensor) -> Tensor:
    """``matrix @ by``."""
    return by if is_identity(matrix) else matrix.to(by.dtype) @ by


@rule("mm")
def mm(ctx: Context, x: Sum, weight: Known) -> Sum:
    """The channels at each position times a matrix."""
    if not isinstance(x, Sum) or isinstance(weight, Sum):
        raise Unsupported("a matrix product whose right side depends on the codes")
    wrong = [(name == "c") == (i == 0) for i in (0, 1) for name, n in x.layout[i] if n > 1]
    if any(wrong):
        raise Unsupported("a matrix product along the grid of codes")
    width = weight.fixed.shape[1]
    layout = (x.layout[0], (("c", width),))
    return ctx.multiplicand(x, width).map_columns(partial(times, by=weight.value), layout)


@rule("addmm")
def addmm(ctx: Context, bias: Known, x: Sum, weight: Known, beta: float = 1, alpha: float = 1) -> Sum:
    """``beta * bias + alpha * x @ weight``."""
    y = scaled(mm(ctx, x, weight), alpha)
    return add(ctx, y, bias, beta)


@rule("sum")
def sum_(
    ctx: Context,
    x: Sum,
    dims: list[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Sum:
    """The sum over dimensions of channels."""
    if dtype not in (None, ctx.dtype):
        raise Unsupported(f"a sum in {dtype} in a network of {ctx.dtype}")
    x = ctx.linear(x)
    summed = {dim % len(x.layout) for dim in dims or range(len(x.layout))}
    if not all(of_channels(x.layout[dim]) for dim in summed):
        raise Unsupported("a sum over positions or samples")
    layout = tuple(() if i in summed else dim for i, dim in enumerate(x.layout))
    index = channel_index(layout).expand([num_channels(dim) for dim in x.layout]).flatten()

    def added(columns: Tensor) -> Tensor:
        into = columns.new_zeros(len(columns), int(index.max()) + 1)
        return into.index_add(1, index.to(columns.device), columns)

    kept = tuple(dim for i, dim in enumerate(layout) if keepdim or i not in summed)
    return x.map_columns(added, kept)


@rule("mean")
def mean(ctx: Context, x: Sum, dims: list[int] | None = None, *options: Any, **more: Any) -> Sum:
    """The mean over dimensions of channels."""
    result = sum_(ctx, x, dims, *options, **more)
    return scaled(result, result.size("c") / x.size("c"))
