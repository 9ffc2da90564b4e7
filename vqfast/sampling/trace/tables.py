"""Functions of one code: computed for all codes, they are tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import (
    Grid,
    Known,
    Unsupported,
    by_position,
    channels,
    shape_of,
)

if TYPE_CHECKING:
    from vqfast.sampling.trace.lower import Lowering


def in_tables(low: Lowering, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Grid | None:
    """An elementwise operation of functions of one code, for all codes; ``None`` for other values."""
    grids = [arg for arg in args if isinstance(arg, Grid)]
    keys = {key for grid in grids for key in grid.taps}
    if any(grid.own() is None for grid in grids) or len(keys) != 1:
        return None
    layout = low.layout(*grids)
    shape = [channels(dim) for dim in layout]

    def rows(value: Any) -> Any:
        """By code, and last outside of the grid."""
        if isinstance(value, Grid):
            ones = (1,) * (len(layout) - len(value.layout))
            return with_outside(value).view(-1, *ones, *map(channels, value.layout))
        if not isinstance(value, Known) or value.value.ndim == 0:
            return getattr(value, "value", value)
        places = by_position(value.value.expand(shape_of(layout)), layout)
        if value.needs or not (places == places[:1, :1, :1]).all():
            raise Unsupported(f"{target.__name__} of codes with what depends on more than them")
        return places[0, 0, 0].view(1, *shape)

    done = target(*map(rows, args), **kwargs).expand(-1, *shape).flatten(1)
    return tabulated(low, layout, keys.pop(), done)


def tabulated(low: Lowering, layout: Any, key: tuple[int, int, int], rows: Tensor) -> Grid:
    """The grid of a table by code, whose last row is what stands outside of the grid."""
    table, outside = rows[:-1], rows[-1]
    grid = Grid(layout, {key: table})
    if key[1:] == (0, 0) and low.is_whole(grid):
        return grid  # there is no outside
    if table.dtype == torch.bool:
        table, outside = table.long(), outside.long()
    return Grid(layout, {key: table - outside}, outside if outside.any() else None)


@rule("embedding")
def embedding(low: Lowering, weight: Known, codes: Grid, *_: Any) -> Grid:
    """A row of the weight for each code."""
    if codes.own() is None or codes.size("c") != 1:
        raise Unsupported("an embedding of what isn't a function of one code")
    layout = (*codes.layout, (("c", weight.value.shape[1]),))
    return tabulated(low, layout, next(iter(codes.taps)), weight.value[with_outside(codes)[:, 0]])


def with_outside(grid: Grid) -> Tensor:
    """The rows of a function of one code, and last what stands outside of the grid."""
    table = next(iter(grid.taps.values()))
    rows = torch.cat([table, torch.zeros_like(table[:1])])
    return rows if grid.bias is None else rows + grid.bias
