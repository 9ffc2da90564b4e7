"""Rules of values that depend on a single code: any function of it is a table, computed for all codes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Unsupported, by_position, num_channels, shape_of
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum, Tap


def in_tables(ctx: Context, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sum | None:
    """The result of an elementwise operation as a table; ``None`` if it depends on more than one code."""
    sums = [arg for arg in args if isinstance(arg, Sum)]
    taps = {tap for each in sums for tap in each.taps}
    if any(each.code_table() is None for each in sums) or len(taps) != 1:
        return None
    layout = ctx.layout(*sums)
    shape = [num_channels(dim) for dim in layout]

    def rows(value: Any) -> Any:
        """An operand, with a row for each code and a last one for positions outside of the grid."""
        if isinstance(value, Sum):
            ones = (1,) * (len(layout) - len(value.layout))
            return with_outside(value).view(-1, *ones, *map(num_channels, value.layout))
        if not isinstance(value, Known) or value.value.ndim == 0:
            return getattr(value, "value", value)
        positions = by_position(value.value.expand(shape_of(layout)), layout)
        if value.needs or not (positions == positions[:1, :1, :1]).all():
            raise Unsupported(f"{target.__name__} of codes and a value that differs by position or label")
        return positions[0, 0, 0].view(1, *shape)

    result = target(*map(rows, args), **kwargs).expand(-1, *shape).flatten(1)
    return tabulated(ctx, layout, taps.pop(), result)


def tabulated(ctx: Context, layout: Any, tap: Tap, rows: Tensor) -> Sum:
    """The value of a table with a row for each code and a last one for positions outside of the grid."""
    table, outside = rows[:-1], rows[-1]
    value = Sum(layout, {tap: table})
    if tap[1:] == (0, 0) and ctx.covers_grid(value):
        return value  # no position outside is read
    if table.dtype == torch.bool:
        table, outside = table.long(), outside.long()
    return Sum(layout, {tap: table - outside}, outside if outside.any() else None)


@rule("embedding")
def embedding(ctx: Context, weight: Known, codes: Sum, *_: Any) -> Sum:
    """The row of the weight for each code."""
    if codes.code_table() is None or codes.size("c") != 1:
        raise Unsupported("an embedding of a value that depends on more than one code")
    layout = (*codes.layout, (("c", weight.value.shape[1]),))
    return tabulated(ctx, layout, next(iter(codes.taps)), weight.value[with_outside(codes)[:, 0]])


@rule("scatter")
def scatter(ctx: Context, zeros: Any, dim: int, codes: Any, value: Any) -> Sum:
    """One-hot vectors of a function of one code: a number written into zeros."""
    if not isinstance(zeros, Known) or zeros.value.any() or not isinstance(value, (int, float)):
        raise Unsupported("scatter, but of a number into zeros")
    if codes.code_table() is None or codes.size("c") != 1 or shape_of(codes.layout)[dim] != 1:
        raise Unsupported("scatter at an index that depends on more than one code")
    width, dim = zeros.value.shape[dim], dim % zeros.value.ndim
    layout = (*codes.layout[:dim], (("c", width),), *codes.layout[dim + 1 :])
    rows = F.one_hot(with_outside(codes)[:, 0], width) * value
    return tabulated(ctx, layout, next(iter(codes.taps)), rows.to(zeros.value.dtype))


def with_outside(value: Sum) -> Tensor:
    """The table of a value that depends on one code, and a last row for positions outside of the grid."""
    table = next(iter(value.taps.values()))
    rows = torch.cat([table, torch.zeros_like(table[:1])])
    return rows if value.bias is None else rows + value.bias
