"""Attention in a traced network: scores, what makes them weights, and the weighted sum.

No way of masking is assumed. All that happens to the scores is computed for random scores: the weights must
be a softmax of a multiple of them over the earlier positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqfast.sampling.attention import weights
from vqfast.sampling.trace.arithmetic import add, scaled
from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.graph import evaluate
from vqfast.sampling.trace.layout import Unsupported, num_channels
from vqfast.sampling.trace.linear import times
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Known, Sum


@dataclass(frozen=True)
class Scores:
    """A value that depends on the scores of all pairs of positions.

    Attributes:
        product: the node that multiplies queries and keys, ``(R, N, N)`` for R samples and heads.
        left, right: what it multiplies, ``(R, N, C)`` and ``(R, C, N)``.
        bias, beta, alpha: the product is ``beta * bias + alpha * left @ right``.
        node: the node that computes this value.
    """

    product: Any
    left: Sum
    right: Sum
    node: Any
    bias: Tensor | float = 0.0
    beta: float = 1
    alpha: float = 1

    def of(self, ctx: Context, scores: Tensor) -> Tensor:
        """The value, if ``left @ right`` is ``scores``."""
        given = {node: value.value for node, value in ctx.values.items() if isinstance(value, Known)}
        given[self.product] = self.alpha * scores + (self.beta * self.bias if self.beta else 0)
        return evaluate([self.node], (), given)[0]


def derived(ctx: Context, args: tuple[Any, ...], leaves: list[Any]) -> Scores | Sum:
    """The value of the node that is interpreted, one of whose operands are scores."""
    name = getattr(ctx.node.target, "overloadpacket", ctx.node.target).__name__
    if name == "bmm" and isinstance(args[1], Sum):
        return attended(ctx, args[0], args[1], transposed=False)
    if name == "bmm" and isinstance(args[0], Sum):
        return attended(ctx, args[1], args[0], transposed=True)
    first = next(leaf for leaf in leaves if isinstance(leaf, Scores))
    for leaf in leaves:
        if isinstance(leaf, Sum) or (isinstance(leaf, Scores) and leaf.product is not first.product):
            raise Unsupported(f"{name} of attention scores and another value that depends on the codes")
        if isinstance(leaf, Known) and leaf.needs:
            raise Unsupported(f"{name} of attention scores and a value that differs by label or condition")
    return replace(first, node=ctx.node)


@rule("bmm")
def bmm(ctx: Context, left: Any, right: Any) -> Scores | Sum:
    """Scores of queries and keys; or a product with the same matrix for every sample."""
    if isinstance(right, Known):
        return times_matrix(ctx, left, right, 2)
    if isinstance(left, Known):
        return times_matrix(ctx, right, replace(left, value=left.value.mT), 1)
    return scores_of(ctx, left, right)


def times_matrix(ctx: Context, x: Sum, matrices: Known, dim: int) -> Sum:
    """The channels of ``x`` in dimension ``dim`` times ``matrices (R, C, out)``, which must all be equal."""
    if matrices.needs or not (matrices.value == matrices.value[:1]).all():
        raise Unsupported("a product with a matrix that differs by sample, head, label or condition")
    if any((name == "c") != (i == dim) for i, axes in enumerate(x.layout) for name, n in axes if n > 1):
        raise Unsupported(f"a matrix product of dimensions {x.layout}")
    width = matrices.value.shape[2]
    layout = tuple((("c", width),) if i == dim else axes for i, axes in enumerate(x.layout))
    return ctx.multiplicand(x, width).map_columns(partial(times, by=matrices.value[0]), layout)


def scores_of(ctx: Context, left: Sum, right: Sum) -> Scores:
    """Scores of queries and keys."""
    left, right = ctx.linear(left), ctx.linear(right)
    for value, positions, channels in ((left, 1, 2), (right, 2, 1)):
        check_layout(ctx, value, positions, channels)
    if left.layout[0] != right.layout[0]:
        raise Unsupported(f"attention between axes {left.layout[0]} and {right.layout[0]}")
    return Scores(ctx.node, left, right, ctx.node)


@rule("baddbmm")
def baddbmm(
    ctx: Context, bias: Any, left: Any, right: Any, beta: float = 1, alpha: float = 1
) -> Scores | Sum:
    """``beta * bias + alpha * left @ right``."""
    if isinstance(left, Known) or isinstance(right, Known):
        product: Any = bmm(ctx, left, right)
        return add(ctx, scaled(product, alpha), bias, beta)
    if not isinstance(bias, Known) or bias.needs:
        raise Unsupported("attention scores and another value that depends on the codes, labels or condition")
    return replace(scores_of(ctx, left, right), bias=bias.value, beta=beta, alpha=alpha)


def check_layout(ctx: Context, value: Sum, positions: int, channels: int) -> None:
    """Checks that a value has samples and heads first, and all positions in raster order in one dimension.

    Raises:
        Unsupported: it has not.
    """

    def names(dim: int) -> list[str]:
        return [name for name, n in value.layout[dim] if n > 1]

    order = [name for name, n in zip("yx", ctx.grid, strict=True) if n > 1]
    heads_first = set(names(0)) <= {"b", "c"} and set(names(channels)) <= {"c"}
    if not heads_first or names(positions) != order or not ctx.covers_grid(value):
        raise Unsupported(f"attention of a value whose dimensions run through {value.layout}")


def attended(ctx: Context, scores: Scores, value: Sum, transposed: bool) -> Sum:
    """The sum of values, weighted by what became of the scores.

    Args:
        ctx: the lowering.
        scores: the weights; the last dimension is summed over.
        value: ``(R, N, C)``.
        transposed: it is ``(R, C, N)`` instead, and the dimension of the weights before the last is summed.
    """
    value = ctx.linear(value)
    check_layout(ctx, value, *((2, 1) if transposed else (1, 2)))
    if value.layout[0] != scores.left.layout[0]:
        raise Unsupported(f"attention between axes {scores.left.layout[0]} and {value.layout[0]}")
    swapped, scale, own = _softmax_of(ctx, scores, transposed)
    query, key = (scores.right, scores.left) if swapped else (scores.left, scores.right)
    return ctx.attention(query, key, value, heads=num_channels(value.layout[0]), scale=scale, own=own)


def _softmax_of(ctx: Context, scores: Scores, transposed: bool) -> tuple[bool, float, bool]:
    """Which softmax over the earlier positions the weights are.

    Returns:
        Whether keys are the left factor of the scores; the scale; and whether a position sees itself.

    Raises:
        Unsupported: they are none.
    """
    size = scores.product.meta["val"].shape
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(size, generator=generator, dtype=torch.float64).to(ctx.device)
    got = scores.of(ctx, drawn)
    if got.shape != size:
        raise Unsupported(f"attention weights of shape {tuple(got.shape)} from scores of shape {tuple(size)}")
    got = (got.mT if transposed else got).double()
    if got.triu(1).any():
        raise Unsupported("attention to later positions")
    own = bool(got.diagonal(dim1=-2, dim2=-1).any())
    earlier = torch.ones_like(got[0], dtype=torch.bool).tril(0 if own else -1)
    for swapped in (False, True):
        of = drawn.mT if swapped else drawn
        scale = _scale(of[:, -1, : size[-1] - 1], got[:, -1, : size[-1] - 1])
        if torch.allclose(weights(scale * of, earlier), got, rtol=1e-5, atol=1e-6):
            return swapped, scale, own
    raise Unsupported("attention whose weights are no softmax of the scores over earlier positions")


def _scale(scores: Tensor, got: Tensor) -> float:
    """The scale whose softmax of scores is nearest to the weights, both ``(R, N)``; 1 if any scale is."""
    scores, logs = (each - each.mean(1, keepdim=True) for each in (scores, got.clamp(min=1e-300).log()))
    total = float((scores * scores).sum())
    return float((scores * logs).sum()) / total if total > 0 else 1.0
