"""Rules of what moves values and computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import (
    Grid,
    Known,
    Layout,
    Unsupported,
    beside,
    index_of,
    reshaped,
    shape_of,
)

if TYPE_CHECKING:
    from vqfast.sampling.trace.lower import Lowering


@rule("clone", "detach", "alias", "contiguous", "lift_fresh_copy")
def same(low: Lowering, x: Grid, *_: Any, **__: Any) -> Grid:
    """A copy."""
    return x


@rule("_to_copy")
def to_copy(low: Lowering, x: Grid, dtype: torch.dtype | None = None, **_: Any) -> Grid:
    """Another type: of a table any, else the network's."""
    if x.own() is not None and dtype is not None and (x.bias is None or dtype.is_floating_point):
        return x.mapped(lambda columns: columns.to(dtype), x.layout)
    if dtype is not None and dtype != low.dtype:
        raise Unsupported(f"{dtype} in a network of {low.dtype}")
    return x


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def view(low: Lowering, x: Grid, *_: Any) -> Grid:
    """Another shape."""
    x = low.plain(x)
    return x.columns(torch.arange(x.size("c")), reshaped(x.layout, low.shape()))


@rule("permute")
def permute(low: Lowering, x: Grid, dims: list[int]) -> Grid:
    """Dimensions in another order."""
    x = low.plain(x)
    layout = tuple(x.layout[dim] for dim in dims)
    return x.columns(index_of(x.layout).permute(dims).flatten(), layout)


@rule("transpose")
def transpose(low: Lowering, x: Grid, a: int, b: int) -> Grid:
    """Two dimensions exchanged."""
    dims = list(range(len(x.layout)))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(low, x, dims)


@rule("t")
def t(low: Lowering, x: Grid) -> Grid:
    """A matrix transposed."""
    return transpose(low, x, 0, 1)


@rule("unsqueeze")
def unsqueeze(low: Lowering, x: Grid, dim: int) -> Grid:
    """One more dimension."""
    x, at = low.plain(x), dim % (len(x.layout) + 1)
    return x.columns(torch.arange(x.size("c")), (*x.layout[:at], (), *x.layout[at:]))


@rule("squeeze")
def squeeze(low: Lowering, x: Grid, *_: Any) -> Grid:
    """Dimensions of one element left out."""
    return view(low, x)


@rule("expand")
def expand(low: Lowering, x: Grid, *_: Any, **__: Any) -> Grid:
    """Channels repeated."""
    return low.lift(x, low.layout(x))


def narrowed(low: Lowering, x: Grid, dim: int, start: int, count: int, step: int = 1) -> Grid:
    """Some of a dimension."""
    x, dim = low.plain(x), dim % len(x.layout)
    axes = x.layout[dim]
    if count == shape_of(x.layout)[dim]:
        return x
    if all(name == "c" for name, _ in axes):
        index = index_of(x.layout)
        chosen = index.index_select(dim, torch.arange(start, start + count * step, step)[:count])
        return x.columns(chosen.flatten(), (*x.layout[:dim], (("c", count),), *x.layout[dim + 1 :]))
    if len(axes) > 1 or axes[0][0] == "b" or step != 1:
        raise Unsupported("some of the samples or of a strided grid")
    axis = axes[0][0]
    x = x.columns(torch.arange(x.size("c")), (*x.layout[:dim], ((axis, count),), *x.layout[dim + 1 :]))
    return x.moved(start if axis == "y" else 0, start if axis == "x" else 0)


@rule("slice")
def slice_(
    low: Lowering, x: Grid, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Grid:
    """Some of a dimension."""
    size = shape_of(x.layout)[dim]
    start, end, step = slice(start, end, step).indices(size)
    return narrowed(low, x, dim, start, len(range(start, end, step)), step)


@rule("select")
def select(low: Lowering, x: Grid, dim: int, index: int) -> Grid:
    """One of a dimension, which goes."""
    x = narrowed(low, x, dim, index % shape_of(x.layout)[dim], 1)
    if any(name != "c" for name, _ in x.layout[dim]):
        raise Unsupported("one row, column or sample of a grid")
    return view(low, x)


@rule("split", "split_with_sizes")
def split(low: Lowering, x: Grid, sizes: int | list[int], dim: int = 0) -> list[Grid]:
    """Parts of a dimension."""
    x, size = low.plain(x), shape_of(x.layout)[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - first) for first in range(0, size, sizes)]
    return [narrowed(low, x, dim, sum(sizes[:i]), count) for i, count in enumerate(sizes)]


@rule("cat")
def cat(low: Lowering, values: list[Grid | Known], dim: int = 0) -> Grid:
    """Channels beside channels; zeros beside a grid."""
    values, dim = [low.plain(v) if isinstance(v, Grid) else v for v in values], dim % len(low.shape())
    like = next(value.layout for value in values if isinstance(value, Grid))
    if any(name != "c" for name, _ in like[dim]):
        return cat_zeros(low, values, dim)

    def of(size: int) -> Layout:
        return (*like[:dim], (("c", size),), *like[dim + 1 :])

    sizes = [v.value.shape[dim] if isinstance(v, Known) else shape_of(v.layout)[dim] for v in values]
    parts = [low.lift(value, of(size)) for value, size in zip(values, sizes, strict=True)]
    counts = [part.size("c") for part in parts]
    index = torch.cat([index_of(part.layout) + sum(counts[:i]) for i, part in enumerate(parts)], dim)
    return beside(parts, of(sum(sizes))).columns(index.flatten(), of(sum(sizes)))


def cat_zeros(low: Lowering, values: list[Grid | Known], dim: int) -> Grid:
    """A grid with zeros before or after it, as ``pad`` does it."""
    grids = [i for i, value in enumerate(values) if isinstance(value, Grid)]
    zeros = [value.value for value in values if isinstance(value, Known)]
    if len(grids) > 1 or any(value.any() for value in zeros):
        raise Unsupported("grids one after the other")
    sizes = [0 if isinstance(value, Grid) else value.value.shape[dim] for value in values]
    after = len(low.shape()) - 1 - dim
    return pad(low, values[grids[0]], [0, 0] * after + [sum(sizes[: grids[0]]), sum(sizes[grids[0] :])])


@rule("constant_pad_nd")
def pad(low: Lowering, x: Grid, pads: list[int], value: float = 0) -> Grid:
    """Zeros around a grid, or some of it."""
    ways = [(0, -1), (0, 1), (-1, 0), (1, 0)]  # left, right, above, below
    sides = [way for way, count in zip(ways, pads, strict=False) if count > 0]
    x = low.plain(x)
    own, key = x.own(), next(iter(x.taps))
    if own is not None and key[1:] == (0, 0) and low.is_whole(x):
        table = own if x.bias is None else own + x.bias
        x = Grid(x.layout, {key: table - value}, torch.full_like(table[0], value) if value != 0 else None)
    elif value != 0:
        raise Unsupported(f"padding by {value}")
    elif sides:
        x = low.source(x, sides)
    moves = {"y": 0, "x": 0}
    layout = list(x.layout)
    for i in range(len(pads) // 2):
        dim, (before, after) = len(layout) - 1 - i, pads[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        if len(layout[dim]) != 1 or layout[dim][0][0] not in moves:
            raise Unsupported("padded channels")
        ((axis, size),) = layout[dim]
        layout[dim] = ((axis, size + before + after),)
        moves[axis] -= before
    return x.columns(torch.arange(x.size("c")), tuple(layout)).moved(moves["y"], moves["x"])
