"""Layouts: which axes of the network (samples, grid, channels) each dimension of a tensor runs through.

A dimension may run through several axes, as after a view, and an axis of channels may be cut into several.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Axis = tuple[str, int]  # its name, "b" (samples), "y", "x" (positions) or "c" (channels), and its size
Layout = tuple[tuple[Axis, ...], ...]  # the axes of each dimension, the slowest first


class Unsupported(Exception):
    """The network does what a program can't do, or what the tracer can't follow."""


def num_channels(dim: tuple[Axis, ...]) -> int:
    """How many channels a dimension runs through."""
    return math.prod(n for name, n in dim if name == "c")


def of_channels(dim: tuple[Axis, ...]) -> bool:
    """Whether a dimension runs through channels, and not through samples or positions."""
    longer = _longer(dim)
    return all(name == "c" for name, _ in longer or dim)


def length(dim: tuple[Axis, ...]) -> int:
    """A dimension's size."""
    return math.prod(n for _, n in dim)


def shape_of(layout: Layout) -> tuple[int, ...]:
    """The shape of a tensor of that layout."""
    return tuple(map(length, layout))


def channel_index(layout: Layout) -> Tensor:
    """The number of each channel, int64, with the dimensions of the layout and only channels in them."""
    sizes = [num_channels(dim) for dim in layout]
    return torch.arange(math.prod(sizes)).view(sizes)


def reshaped(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout of a view of ``shape``.

    Raises:
        Unsupported: a new dimension would cut an axis of samples or positions.
    """
    axes, dims = [axis for dim in layout for axis in dim], []
    for size in shape:
        so_far = 1
        dim: list[Axis] = []
        while so_far < size or (size == 1 and not dim and axes and axes[0][1] == 1):
            name, n = axes.pop(0) if axes else ("", 1)
            if size > 1 and (name, n) == ("c", 1):
                continue  # one channel, as a stack has it, belongs to no dimension
            if size % (so_far * n):
                part = size // so_far
                if name != "c" or n % part:
                    raise Unsupported(f"a view as {tuple(shape)}, which cuts the grid of codes")
                axes.insert(0, (name, n // part))
                n = part
            so_far *= n
            if dim and dim[-1][0] == name == "c":
                n *= dim.pop()[1]
            dim.append((name, n))
            if not name:
                raise Unsupported(f"a view as {tuple(shape)}")
        dims.append(tuple(dim))
    return (*dims[:-1], (*dims[-1], *axes)) if dims and axes else tuple(dims)


def common_layout(layouts: list[Layout], shape: tuple[int, ...]) -> Layout:
    """The layout of the result when tensors of these layouts, and constants, broadcast to ``shape``.

    Raises:
        Unsupported: an axis of the grid meets another axis.
    """
    dims = []
    for place, size in enumerate(shape, start=-len(shape)):
        present = [layout[place] for layout in layouts if -place <= len(layout)]
        fitting = [dim for dim in present if length(dim) == size and dim]
        chosen = fitting[0] if fitting else (() if size == 1 else (("c", size),))
        if any(_longer(dim) != _longer(chosen) and length(dim) > 1 for dim in present) or any(
            length(dim) == 1 < size and any(name != "c" for name, _ in chosen) for dim in present
        ):
            raise Unsupported(f"an operation on tensors of axes {layouts} together")
        dims.append(chosen)
    return tuple(dims)


def _longer(dim: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of a dimension that have more than one element."""
    return tuple(axis for axis in dim if axis[1] > 1)


def by_position(value: Tensor, layout: Layout) -> Tensor:
    """A tensor of that layout as ``(samples, rows, columns, channels)``."""
    axes = [axis for dim in layout for axis in dim]
    order = sorted(range(len(axes)), key=lambda i: "byxc".index(axes[i][0]))
    sizes = [math.prod(n for name, n in axes if name == each) for each in "byxc"]
    return value.reshape([n for _, n in axes]).permute(order).reshape(sizes)
