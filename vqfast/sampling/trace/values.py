"""The values of a traced network, as functions of the codes.

A tensor that depends on the codes is a ``Sum``: at each position, the sum of products of sources with
matrices. Sources are the codes as one-hot vectors, maps that are known from the start, and earlier steps;
each is read at the position or near it. The sum's layout says how the tensor holds positions and channels.
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
from vqfast.sampling.trace.layout import Layout, Unsupported, channel_index, num_channels

Tap = tuple[int, int, int]  # a source and the offset at which it is read, (source, dy, dx)
ONES = CODES - 2**20  # below the codes of a position: the source that is 1 at every position of the grid
FIRST_MAP = ONES - 1  # this number and lower ones are sources that are maps


@dataclass
class Known:
    """A value that doesn't depend on the codes.

    Attributes:
        value: what it is for the inputs of the trace.
        needs: which of the inputs ``labels`` and ``condition`` it depends on.
        node: the node of the graph that computes it.
        inverse: the value is 1 divided by that of the node.
    """

    value: Any
    needs: frozenset[str]
    node: Any = None
    inverse: bool = False

    @property
    def fixed(self) -> Any:
        """The value, as a constant of the program.

        Raises:
            Unsupported: it is another one for other labels or another condition.
        """
        if self.needs:
            raise Unsupported(f"a weight that depends on {' and '.join(sorted(self.needs))}")
        return self.value


@dataclass(eq=False)
class Sum:
    """``activation(sum of source[position + (dy, dx)] @ taps[source, dy, dx] + bias + labels[label])``.

    Sources are zero outside of the grid. The columns of the matrices are the channels of the layout, in the
    order of its dimensions; an activation of two halves has twice as many columns.

    Attributes:
        layout: of the tensor.
        taps: matrices ``(channels of the source, columns)``.
        bias: ``(columns,)``, or ``None``.
        labels: ``(num_classes, columns)``, or ``None``.
        activation: one that is still to be applied.
        stride: position ``(y, x)`` of the tensor is position ``(stride * y, stride * x)`` of the grid of
            codes; offsets of taps count positions of the grid of codes.
        steps: those that the sum has become, if it has: where each is read, and which channels it computes.
        node: the node of the graph that computes it.
    """

    layout: Layout
    taps: dict[Tap, Tensor]
    bias: Tensor | None = None
    labels: Tensor | None = None
    activation: str = "none"
    stride: int = 1
    steps: tuple[tuple[Tap, Tensor], ...] = ()
    node: Any = None

    def size(self, axis: str) -> int:
        """The size of an axis."""
        return math.prod(n for dim in self.layout for name, n in dim if name == axis)

    def select(self, index: Tensor, layout: Layout) -> Sum:
        """The columns of these indices, as the channels of ``layout``."""
        if len(index) == self.size("c") and torch.equal(index, torch.arange(len(index))):
            return replace(self, layout=layout)
        return self.map_columns(lambda columns: columns[:, index.to(columns.device)], layout)

    def part(self, channels: Tensor) -> Sum:
        """Some channels of the value, with its activation; sources that they don't depend on are dropped."""
        width = _parts(self)[0].shape[1]
        columns = torch.arange(width).view(-1, self.size("c"))[:, channels].flatten()
        value = self.map_columns(lambda each: each[:, columns.to(each.device)], ((("c", len(channels)),),))
        taps = {tap: matrix for tap, matrix in value.taps.items() if (matrix != 0).any()}
        return replace(value, taps=taps, activation=self.activation, node=self.node)

    def map_columns(self, of: Callable[[Tensor], Tensor], layout: Layout) -> Sum:
        """The linear map ``of``, from ``(rows, columns)`` to ``(rows, new columns)``, of all columns."""
        return Sum(
            layout,
            {tap: of(matrix) for tap, matrix in self.taps.items()},
            None if self.bias is None else of(self.bias[None])[0],
            None if self.labels is None else of(self.labels),
            stride=self.stride,
        )

    def moved(self, dy: int, dx: int) -> Sum:
        """The value at ``(dy, dx)`` from each position, as the tensor counts them."""
        dy, dx = dy * self.stride, dx * self.stride
        taps = {(source, y + dy, x + dx): matrix for (source, y, x), matrix in self.taps.items()}
        return replace(self, taps=taps, steps=())

    def code_table(self) -> Tensor | None:
        """The table ``(K, columns)`` of a value each of whose columns depends on one code of one position.

        ``None`` for other values. Of the codes of a position each column may depend on another.
        """
        if self.activation != "none" or self.labels is not None or not self.taps:
            return None
        at_codes = all(ONES < source <= CODES for source, _, _ in self.taps)
        if not at_codes or len({tap[1:] for tap in self.taps}) > 1:
            return None
        tables = torch.stack(list(self.taps.values()))
        if len(tables) == 1:
            return tables[0]
        single = (tables != 0).any(1).sum(0) <= 1
        return tables.sum(0, dtype=tables.dtype) if bool(single.all()) else None

    def codes_read(self) -> Tensor:
        """The source that each column of a value with a table depends on, int64 ``(columns,)``."""
        sources = torch.tensor([source for source, _, _ in self.taps])
        read = torch.stack([(matrix != 0).any(0).cpu() for matrix in self.taps.values()])
        return sources[read.int().argmax(0)]


def by_code(table: Tensor, offset: tuple[int, int], read: Tensor) -> dict[Tap, Tensor]:
    """The taps of a table ``(K, columns)``, each column of which depends on the code that ``read`` names."""
    sources = sorted(set(read.tolist()), reverse=True)
    if len(sources) == 1:
        return {(sources[0], *offset): table}
    read = read.to(table.device)
    return {(source, *offset): table * (read == source) for source in sources}


def total(sums: list[Sum]) -> Sum:
    """The sum of values of one layout."""
    taps: dict[Tap, Tensor] = {}
    strides = {each.stride for each in sums if each.taps} or {1}
    if len(strides) > 1:
        raise Unsupported("an operation on values of grids of different strides together")
    for each in sums:
        for tap, matrix in each.taps.items():
            taps[tap] = taps[tap] + matrix if tap in taps else matrix
    biases = [each.bias for each in sums if each.bias is not None]
    labels = [each.labels for each in sums if each.labels is not None]
    return Sum(
        sums[0].layout,
        taps,
        sum(biases[1:], biases[0]) if biases else None,
        sum(labels[1:], labels[0]) if labels else None,
        stride=strides.pop(),
    )


def concatenated(sums: list[Sum], layout: Layout) -> Sum:
    """The columns of all values, one value's after another's."""
    widths = [_parts(each)[0].shape[1] for each in sums]
    padded = []
    for i, each in enumerate(sums):
        around = sum(widths[:i]), sum(widths[i + 1 :])
        padded.append(each.map_columns(partial(F.pad, pad=around), layout))
    return total(padded)


def _parts(value: Sum) -> list[Tensor]:
    """The tensors ``(rows, columns)`` of a value."""
    bias = [value.bias[None]] if value.bias is not None else []
    return [*value.taps.values(), *bias, *([value.labels] if value.labels is not None else [])]


def is_identity(matrix: Tensor) -> bool:
    """Whether a product with the matrix changes nothing."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def is_zero_outside(value: Sum, offsets: list[tuple[int, int]]) -> bool:
    """Whether a value without its bias is zero wherever it is read outside of the grid, at these offsets.

    It is, if every tap leads further out in the direction of the offset, or, before the grid, less far back
    than the stride. But a map may have values outside of the grid.
    """
    if offsets and any(source <= FIRST_MAP and (dy, dx) != (0, 0) for source, dy, dx in value.taps):
        return False
    return value.labels is None and all(
        outer * inner >= 0 or (outer < 0 and inner < value.stride)
        for offset in offsets
        for _, *tap in value.taps
        for outer, inner in zip(offset, tap, strict=True)
    )


def selects_channels(value: Sum) -> bool:
    """Whether each column is one channel of one step, or zero."""
    if value.bias is not None or value.labels is not None or any(source < 0 for source, _, _ in value.taps):
        return False
    if not value.taps:
        return True
    stacked = torch.cat(list(value.taps.values()))
    return bool(((stacked == 0) | (stacked == 1)).all()) and bool((stacked.ne(0).sum(0) <= 1).all())


def broadcast(value: Sum, layout: Layout) -> Sum:
    """A value whose tensor broadcasts to the layout."""
    if value.layout == layout:
        return value
    index = channel_index(value.layout)
    index = index.view((1,) * (len(layout) - index.ndim) + index.shape)
    return value.select(index.expand([num_channels(dim) for dim in layout]).flatten(), layout)
