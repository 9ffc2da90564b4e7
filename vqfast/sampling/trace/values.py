"""Tensors of a traced network as what they are of the codes.

A tensor that depends on the codes is a ``Grid``: for each position, the sum of products of sources (the codes
as one-hot vectors, maps that are known, steps) at nearby positions with matrices. Where its axes stand says
its layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.program import CODES

Atom = tuple[str, int]  # "b" (samples), "y", "x" (positions) or "c" (channels), and how many
Layout = tuple[tuple[Atom, ...], ...]  # the axes that each dimension of a tensor runs through
Key = tuple[int, int, int]  # a source, dy, dx
ONES = CODES - 1  # the source that is one everywhere in the grid
FIRST_MAP = ONES - 1  # the sources below are maps that are known from the start


class Unsupported(Exception):
    """What a program can't do, or the tracer can't see through."""


@dataclass
class Known:
    """A value that doesn't depend on the codes, as it is for the trace's inputs."""

    value: Any
    needs: frozenset[str]  # of "labels", "condition"
    node: Any = None  # of the graph


@dataclass(eq=False)
class Grid:
    """``activation(sum of source[position + (dy, dx)] @ taps[source, dy, dx] + bias + labels[label])``.

    The columns of the matrices are the layout's channels, in the order of its dimensions; of a gate, twice as
    many. Sources are zero outside of the grid.
    """

    layout: Layout
    taps: dict[Key, Tensor]
    bias: Tensor | None = None  # (columns,)
    labels: Tensor | None = None  # (num_classes, columns)
    activation: str = "none"
    number: int | None = None  # of the step that it has become
    node: Any = None  # that it comes from

    def size(self, axis: str) -> int:
        """How many an axis has."""
        return math.prod(n for dim in self.layout for name, n in dim if name == axis)

    def columns(self, index: Tensor, layout: Layout) -> Grid:
        """Chosen columns, as the channels of ``layout``."""
        if len(index) == self.size("c") and torch.equal(index, torch.arange(len(index))):
            return replace(self, layout=layout)
        return self.mapped(lambda columns: columns[:, index.to(columns.device)], layout)

    def mapped(self, of: Callable[[Tensor], Tensor], layout: Layout) -> Grid:
        """A linear map of the columns ``(rows, columns)``."""
        return Grid(
            layout,
            {key: of(matrix) for key, matrix in self.taps.items()},
            None if self.bias is None else of(self.bias[None])[0],
            None if self.labels is None else of(self.labels),
        )

    def moved(self, dy: int, dx: int) -> Grid:
        """What stands ``(dy, dx)`` further on."""
        taps = {(source, y + dy, x + dx): matrix for (source, y, x), matrix in self.taps.items()}
        return replace(self, taps=taps, number=None)

    def own(self) -> Tensor | None:
        """The table ``(K, columns)`` of a function of one code, if it is one."""
        if self.activation != "none" or self.labels is not None or len(self.taps) != 1:
            return None
        ((source, _, _), table) = next(iter(self.taps.items()))
        return table if source == CODES else None


def total(grids: list[Grid]) -> Grid:
    """The sum of grids of one layout."""
    taps: dict[Key, Tensor] = {}
    for grid in grids:
        for key, matrix in grid.taps.items():
            taps[key] = taps[key] + matrix if key in taps else matrix
    biases = [grid.bias for grid in grids if grid.bias is not None]
    labels = [grid.labels for grid in grids if grid.labels is not None]
    return Grid(
        grids[0].layout,
        taps,
        sum(biases[1:], biases[0]) if biases else None,
        sum(labels[1:], labels[0]) if labels else None,
    )


def beside(grids: list[Grid], layout: Layout) -> Grid:
    """The columns of all grids side by side."""
    widths = [all_columns(grid)[0].shape[1] for grid in grids]
    parts = []
    for i, grid in enumerate(grids):
        around = sum(widths[:i]), sum(widths[i + 1 :])
        parts.append(grid.mapped(partial(F.pad, pad=around), layout))
    return total(parts)


def all_columns(grid: Grid) -> list[Tensor]:
    """Whatever a grid has that holds columns, ``(rows, columns)`` each."""
    rest = [grid.bias[None]] if grid.bias is not None else []
    return [*grid.taps.values(), *rest, *([grid.labels] if grid.labels is not None else [])]


def is_one(matrix: Tensor) -> bool:
    """Whether a matrix changes nothing."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def composes(grid: Grid, offsets: list[tuple[int, int]]) -> bool:
    """Whether a grid that is read at these offsets is zero outside of the grid, with a bias only inside."""
    return grid.labels is None and all(
        outer * inner >= 0
        for offset in offsets
        for _, *tap in grid.taps
        for outer, inner in zip(offset, tap, strict=True)
    )


def is_choice(grid: Grid) -> bool:
    """Whether each column is one channel of one step, or none."""
    if grid.bias is not None or grid.labels is not None or any(source < 0 for source, _, _ in grid.taps):
        return False
    stacked = torch.cat(list(grid.taps.values()))
    return bool(((stacked == 0) | (stacked == 1)).all()) and bool((stacked.ne(0).sum(0) <= 1).all())


# Layouts


def channels(dim: tuple[Atom, ...]) -> int:
    """Channels that a dimension runs through."""
    return math.prod(n for name, n in dim if name == "c")


def length(dim: tuple[Atom, ...]) -> int:
    """A dimension's size."""
    return math.prod(n for _, n in dim)


def shape_of(layout: Layout) -> tuple[int, ...]:
    """Of a tensor of that layout."""
    return tuple(map(length, layout))


def index_of(layout: Layout) -> Tensor:
    """The number of the channel, by the channels of each dimension."""
    sizes = [channels(dim) for dim in layout]
    return torch.arange(math.prod(sizes)).view(sizes)


def reshaped(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout of a view of another shape.

    Raises:
        Unsupported: a dimension cuts an axis that isn't one of channels.
    """
    atoms, dims = [atom for dim in layout for atom in dim], []
    for size in shape:
        so_far = 1
        dim: list[Atom] = []
        while so_far < size or (size == 1 and not dim and atoms and atoms[0][1] == 1):
            name, n = atoms.pop(0) if atoms else ("", 1)
            if size % (so_far * n):
                part = size // so_far
                if name != "c" or n % part:
                    raise Unsupported(f"a view as {tuple(shape)}, which cuts the grid")
                atoms.insert(0, (name, n // part))
                n = part
            so_far *= n
            if dim and dim[-1][0] == name == "c":
                n *= dim.pop()[1]
            dim.append((name, n))
            if not name:
                raise Unsupported(f"a view as {tuple(shape)}")
        dims.append(tuple(dim))
    return (*dims[:-1], (*dims[-1], *atoms)) if dims and atoms else tuple(dims)


def common(layouts: list[Layout], shape: tuple[int, ...]) -> Layout:
    """The layout of tensors of such layouts, and others, that broadcast to ``shape``.

    Raises:
        Unsupported: an axis of the grid meets another one.
    """
    dims = []
    for place, size in enumerate(shape, start=-len(shape)):
        having = [layout[place] for layout in layouts if -place <= len(layout)]
        fitting = [dim for dim in having if length(dim) == size and dim]
        chosen = fitting[0] if fitting else (() if size == 1 else (("c", size),))
        if any(dim != chosen and length(dim) > 1 for dim in having) or any(
            length(dim) == 1 < size and any(name != "c" for name, _ in chosen) for dim in having
        ):
            raise Unsupported(f"tensors of axes {layouts} together")
        dims.append(chosen)
    return tuple(dims)


def spread(grid: Grid, layout: Layout) -> Grid:
    """A grid as its tensor is broadcast to the layout."""
    if grid.layout == layout:
        return grid
    index = index_of(grid.layout)
    index = index.view((1,) * (len(layout) - index.ndim) + index.shape)
    return grid.columns(index.expand([channels(dim) for dim in layout]).flatten(), layout)


def by_position(value: Tensor, layout: Layout) -> Tensor:
    """A tensor of that layout as ``(samples, rows, columns, channels)``."""
    atoms = [atom for dim in layout for atom in dim]
    order = sorted(range(len(atoms)), key=lambda i: "byxc".index(atoms[i][0]))
    sizes = [math.prod(n for name, n in atoms if name == axis) for axis in "byxc"]
    return value.reshape([n for _, n in atoms]).permute(order).reshape(sizes)
