"""Rules of sums, products and activations."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Layout, Unsupported, num_channels, of_channels, shape_of
from vqfast.sampling.trace.rules import RULES, rule
from vqfast.sampling.trace.shapes import split
from vqfast.sampling.trace.values import Known, Sum, concatenated, total


@rule("add")
def add(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Sum:
    """``a + alpha * b``."""
    layout = ctx.layout(a, b)
    return total([ctx.as_sum(a, layout), scaled(ctx.as_sum(b, layout), alpha)])


@rule("sub")
def sub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Sum:
    """``a - alpha * b``."""
    return add(ctx, a, b, -alpha)


@rule("rsub")
def rsub(ctx: Context, a: Any, b: Any, alpha: float = 1) -> Sum:
    """``b - alpha * a``."""
    return add(ctx, b, a, -alpha)


@rule("neg")
def neg(ctx: Context, x: Sum) -> Sum:
    """``-x``."""
    return scaled(ctx.linear(x), -1)


def scaled(x: Sum, by: float | Tensor) -> Sum:
    """A linear value times a number, or times a number for each column."""
    if isinstance(by, (int, float)) and by == 1:
        return x
    return x.map_columns(lambda columns: columns * by, x.layout)


def plus_number(ctx: Context, x: Sum, number: float) -> Sum:
    """A linear value plus a number."""
    bias = torch.full_like(ctx.identity(1)[0], number).expand(x.size("c"))
    return total([x, Sum(x.layout, {}, bias)])


@rule("mul")
def mul(ctx: Context, a: Any, b: Any) -> Sum:
    """The product of two values; as a step, unless one is a constant that is the same everywhere."""
    layout = ctx.layout(a, b)
    if isinstance(a, Sum) and isinstance(b, Sum):
        return multiplied(ctx, *((b, a) if a.activation == "sigmoid" else (a, b)), layout)
    value, other = (a, b) if isinstance(a, Sum) else (b, a)
    factor = ctx.as_sum(other, layout)
    if factor.bias is None:
        return multiplied(ctx, value, factor, layout)
    return scaled(ctx.as_sum(value, layout), factor.bias)


def multiplied(ctx: Context, a: Sum, b: Sum, layout: Layout) -> Sum:
    """The product of two values. With a sigmoid as ``b`` it is the activation gate or glu of one step."""
    name = "product"
    if b.activation == "sigmoid" and a.layout == b.layout:
        name, b = "glu", before_activation(b)
        if a.activation == "tanh":
            name, a = "gate", before_activation(a)
    joined = concatenated([ctx.as_sum(a, layout), ctx.as_sum(b, layout)], layout)
    joined.activation = name
    return joined


def before_activation(x: Sum) -> Sum:
    """The value without its activation."""
    return Sum(x.layout, x.taps, x.bias, x.labels, stride=x.stride)


@rule("glu")
def glu(ctx: Context, x: Sum, dim: int = -1) -> Sum:
    """The first half times the sigmoid of the second."""
    a, b = split(ctx, x, shape_of(x.layout)[dim] // 2, dim)
    return multiplied(ctx, a, activated(ctx, b, "sigmoid"), ctx.layout(a, b))


@rule("pow")
def power(ctx: Context, x: Sum, exponent: Any) -> Sum:
    """A square or a cube; other powers aren't supported."""
    if exponent not in (2, 3):
        raise Unsupported(f"the power {exponent} of a value that depends on the codes")
    x = ctx.readable(x, [])
    square = mul(ctx, x, x)
    return square if exponent == 2 else mul(ctx, square, x)


@rule("div")
def div(ctx: Context, a: Sum, b: Any, *, rounding_mode: str | None = None) -> Sum:
    """A quotient by a constant that is the same everywhere."""
    if rounding_mode is not None:
        raise Unsupported("a rounded quotient")
    if isinstance(b, Sum):
        raise Unsupported("a quotient by a value that depends on the codes")
    inverse = Known(1 / b.value, b.needs, b.node, not b.inverse) if isinstance(b, Known) else 1 / b
    return mul(ctx, a, inverse)


# Activations


def activated(ctx: Context, x: Sum, name: str) -> Sum:
    """The value with an activation that its step will apply."""
    return replace(before_activation(ctx.linear(x)), activation=name)


for _name in ("relu", "silu", "sigmoid", "tanh"):
    RULES[_name] = partial(activated, name=_name)


def mixed(ctx: Context, *parts: tuple[float, Sum]) -> Sum:
    """The sum of values, each times a number."""
    return total([scaled(ctx.linear(part), factor) for factor, part in parts])


@rule("elu")
def elu(ctx: Context, x: Sum, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Sum:
    """``scale * x`` above zero, ``scale * alpha * (exp(x) - 1)`` below: a mixture of ELU and ReLU."""
    if input_scale != 1:
        raise Unsupported(f"elu of input_scale {input_scale}")
    if alpha == scale == 1:
        return activated(ctx, x, "elu")
    x = ctx.readable(x, [])
    plain_elu, relu = activated(ctx, x, "elu"), activated(ctx, x, "relu")
    return mixed(ctx, (alpha * scale, plain_elu), ((1 - alpha) * scale, relu))


@rule("leaky_relu")
def leaky_relu(ctx: Context, x: Sum, slope: float = 0.01) -> Sum:
    """``x`` above zero, ``slope * x`` below: a mixture of ReLU and the value itself."""
    x = ctx.readable(x, [])
    return mixed(ctx, (1 - slope, activated(ctx, x, "relu")), (slope, x))


@rule("gelu")
def gelu(ctx: Context, x: Sum, approximate: str = "none") -> Sum:
    """The exact GELU, ``x * normal_cdf(x)``; or its approximation by a hyperbolic tangent."""
    if approximate == "none":
        return activated(ctx, x, "gelu")
    x = ctx.readable(x, [])
    inner = mixed(ctx, (math.sqrt(2 / math.pi), x), (0.044715 * math.sqrt(2 / math.pi), power(ctx, x, 3)))
    return mul(ctx, scaled(x, 0.5), plus_number(ctx, ctx.linear(activated(ctx, inner, "tanh")), 1))


@rule("clamp", "clamp_min")
def clamp(ctx: Context, x: Sum, minimum: Any = None, maximum: Any = None) -> Sum:
    """Bounds, numbers or tensors: a ReLU for one of them, the difference of two ReLUs for both."""
    if minimum is None:
        return clamp_max(ctx, x, maximum)
    bounds = [minimum] if maximum is None else [minimum, maximum]
    layout = ctx.layout(x, *bounds)
    x = ctx.as_sum(ctx.linear(x) if maximum is None else ctx.readable(x, []), layout)
    sums = [ctx.as_sum(bound, layout) for bound in bounds]
    above = [activated(ctx, mixed(ctx, (1, x), (-1, bound)), "relu") for bound in sums]
    if maximum is None:
        return mixed(ctx, (1, above[0]), (1, sums[0]))
    within = mixed(ctx, (1, above[0]), (-1, above[1]), (1, sums[0]))
    highest, lowest = ctx.as_sum(maximum, layout).bias, sums[0].bias
    if highest is None or lowest is None or (highest < lowest).any():
        raise Unsupported("a clamp between bounds that differ by position, or the wrong way round")
    return within


@rule("clamp_max")
def clamp_max(ctx: Context, x: Sum, maximum: Any) -> Sum:
    """An upper bound: the lower bound of the negative."""
    layout = ctx.layout(x, maximum)
    negative = scaled(ctx.as_sum(maximum, layout), -1)
    above = activated(ctx, mixed(ctx, (-1, ctx.as_sum(x, layout)), (-1, negative)), "relu")
    return mixed(ctx, (-1, above), (-1, negative))


@rule("maximum")
def maximum_(ctx: Context, a: Any, b: Any) -> Sum:
    """The larger of two values."""
    return clamp(ctx, a, b) if isinstance(a, Sum) else clamp(ctx, b, a)


@rule("minimum")
def minimum_(ctx: Context, a: Any, b: Any) -> Sum:
    """The smaller of two values."""
    return clamp_max(ctx, a, b) if isinstance(a, Sum) else clamp_max(ctx, b, a)


@rule("_prelu_kernel")
def prelu(ctx: Context, x: Sum, slope: Any) -> Sum:
    """``x`` above zero, ``slope * x`` below."""
    x = ctx.readable(x, [])
    relu = ctx.linear(activated(ctx, x, "relu"))
    return mixed(ctx, (1, relu), (1, mul(ctx, mixed(ctx, (1, x), (-1, relu)), slope)))


@rule("hardtanh")
def hardtanh(ctx: Context, x: Sum, minimum: float = -1, maximum: float = 1) -> Sum:
    """See ``clamp``."""
    return clamp(ctx, x, minimum, maximum)


# The result


@rule("_log_softmax")
def log_softmax(ctx: Context, x: Sum, dim: int, _: bool) -> Sum:
    """The logits themselves, if they are the result: they differ by a constant, which changes no draw."""
    count = num_channels(x.layout[dim])
    if not of_channels(x.layout[dim]) or count not in (x.size("c"), ctx.num_embeddings):
        raise Unsupported("log_softmax along another axis than that of all codes")
    if not is_result(ctx.node):
        raise Unsupported("log_softmax inside of the network")
    return x


@rule("_softmax")
def softmax(ctx: Context, x: Sum, *_: Any) -> Sum:
    """Not supported: probabilities aren't logits."""
    advice = "; return the logits" if is_result(ctx.node) else ""
    raise Unsupported(f"softmax{advice}")


_MOVING = (  # operations after which a value is the same in another place
    "permute", "view", "transpose", "clone", "_unsafe_view", "alias", "detach", "stack", "cat", "unsqueeze",
    "squeeze", "contiguous", "reshape", "_reshape_alias", "select", "slice",
)  # fmt: skip


def is_result(node: Any) -> bool:
    """Whether a node is only returned, perhaps as a view."""
    return all(
        user.op == "output" or (user.target.overloadpacket.__name__ in _MOVING and is_result(user))
        for user in node.users
    )
