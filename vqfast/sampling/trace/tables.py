"""Rules of values that depend on a single code: any function of it is a table, computed for all codes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, by_position, num_channels, shape_of
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum, broadcast, by_code


def in_tables(ctx: Context, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sum | None:
    """The result of an elementwise operation as a table.

    ``None`` if it depends on more than one code, or on a value that differs by position or label.
    """
    sums = [arg for arg in args if isinstance(arg, Sum)]
    if any(each.code_table() is None for each in sums):
        return None
    layout = ctx.layout(*sums)
    shape = [num_channels(dim) for dim in layout]
    offsets = {tap[1:] for each in sums for tap in each.taps}
    read = torch.stack([_codes_read(each, layout) for each in sums])
    strides = {each.stride for each in sums}
    if len(offsets) != 1 or len(strides) != 1 or (read != read[0]).any():
        return None

    def rows(value: Any) -> Any:
        """An operand, with a row for each code and a last one for positions outside of the grid."""
        if isinstance(value, Sum):
            ones = (1,) * (len(layout) - len(value.layout))
            return _with_outside(value).view(-1, *ones, *map(num_channels, value.layout))
        if not isinstance(value, Known) or value.value.ndim == 0:
            return value.value if isinstance(value, Known) else value
        positions = by_position(value.value.expand(shape_of(layout)), layout)
        differ.append(bool((positions != positions[:1, :1, :1]).any()))
        return positions[0, 0, 0].view(1, *shape)

    differ = [bool(arg.needs) for arg in args if isinstance(arg, Known)]
    operands = list(map(rows, args))
    if any(differ):
        return None
    result = target(*operands, **kwargs).expand(-1, *shape).flatten(1)
    return _tabulated(ctx, layout, offsets.pop(), read[0], result, strides.pop())


def _codes_read(value: Sum, layout: Layout) -> Tensor:
    """``value.codes_read()`` for the columns of a layout that it broadcasts to."""
    return broadcast(Sum(value.layout, {}, value.codes_read()), layout).bias  # type: ignore[return-value]


def _tabulated(
    ctx: Context, layout: Layout, offset: tuple[int, int], read: Tensor, rows: Tensor, stride: int
) -> Sum:
    """The value of a table with a row for each code and a last one for positions outside of the grid.

    ``read`` says which code of the position at ``offset`` each column depends on.
    """
    table, outside = rows[:-1], rows[-1]
    whole = Sum(layout, by_code(table, offset, read), stride=stride)
    if ctx.inside(whole):
        return whole  # no position outside is read
    if table.dtype == torch.bool:
        table, outside = table.long(), outside.long()
    bias = outside if outside.any() else None
    return Sum(layout, by_code(table - outside, offset, read), bias, stride=stride)


@rule("embedding")
def embedding(ctx: Context, weight: Known, codes: Sum, *_: Any) -> Sum:
    """The row of the weight for each code."""
    if codes.code_table() is None:
        raise Unsupported("an embedding of a value that depends on more than one code")
    width = weight.fixed.shape[1]
    layout = (*codes.layout, (("c", width),))
    read, rows = codes.codes_read().repeat_interleave(width), weight.fixed[_with_outside(codes)]
    return _tabulated(ctx, layout, next(iter(codes.taps))[1:], read, rows.flatten(1), codes.stride)


@rule("scatter")
def scatter(ctx: Context, zeros: Any, dim: int, codes: Any, value: Any) -> Sum:
    """One-hot vectors of a function of one code: a number written into zeros."""
    if not isinstance(zeros, Known) or zeros.value.any() or not isinstance(value, (int, float)):
        raise Unsupported("scatter, but of a number into zeros")
    if codes.code_table() is None or codes.size("c") != 1 or shape_of(codes.layout)[dim] != 1:
        raise Unsupported("scatter at an index that depends on more than one code")
    width, dim = zeros.value.shape[dim], dim % zeros.value.ndim
    layout = (*codes.layout[:dim], (("c", width),), *codes.layout[dim + 1 :])
    rows = F.one_hot(_with_outside(codes)[:, 0], width) * value
    read = codes.codes_read().expand(width)
    rows = rows.to(zeros.value.dtype)
    return _tabulated(ctx, layout, next(iter(codes.taps))[1:], read, rows, codes.stride)


def _with_outside(value: Sum) -> Tensor:
    """The table of a value that has one, and a last row for positions outside of the grid."""
    table = value.code_table()
    assert table is not None
    rows = torch.cat([table, torch.zeros_like(table[:1])])
    return rows if value.bias is None else rows + value.bias
