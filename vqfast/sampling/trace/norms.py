"""Rules of normalisations: over samples by running statistics, and over the channels of a position."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqfast.sampling.trace.arithmetic import add, mul, multiplied, scaled
from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.layout import Unsupported, num_channels
from vqfast.sampling.trace.linear import times
from vqfast.sampling.trace.rules import rule
from vqfast.sampling.trace.values import Sum, concatenated, total


@rule("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit")
def batch_norm(
    ctx: Context, x: Sum, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _: float, eps: float
) -> tuple[Sum, None, None]:
    """A scale and a shift of each channel, by the running statistics."""
    if training or mean is None:
        raise Unsupported("batch normalisation in training mode; call .eval() first")
    scale = (var.fixed + eps).rsqrt() * (1 if weight is None else weight.fixed)
    shift = (0 if bias is None else bias.fixed) - mean.fixed * scale
    x = scaled(ctx.linear(x), scale)
    return total([x, Sum(x.layout, {}, shift)]), None, None


@rule("_native_batch_norm_legit_no_training")
def batch_norm_eval(
    ctx: Context, x: Sum, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Sum, None, None]:
    """See ``batch_norm``."""
    return batch_norm(ctx, x, weight, bias, mean, var, False, momentum, eps)


@rule("native_layer_norm")
def layer_norm(
    ctx: Context, x: Sum, shape: list[int], weight: Any, bias: Any, eps: float
) -> tuple[Sum, None, None]:
    """Normalises the channels of each position: three steps, the last of which has the activation norm."""
    x, mean = ctx.linear(x), _mean(ctx, x, shape)
    centred = ctx.readable(x.map_columns(partial(times, by=ctx.identity(len(mean)) - mean), x.layout), [])
    value = _over_deviation(ctx, centred, mean, eps)
    if weight is not None:
        value = mul(ctx, value, weight)
    return (value if bias is None else add(ctx, value, bias)), None, None


@rule("_fused_rms_norm")
def rms_norm(
    ctx: Context, x: Sum, shape: list[int], weight: Any, eps: float | None = None
) -> tuple[Sum, None]:
    """Divides the channels of each position by the root of their mean square."""
    x, mean = ctx.readable(x, []), _mean(ctx, x, shape)
    value = _over_deviation(ctx, x, mean, torch.finfo(ctx.dtype).eps if eps is None else eps)
    return (value if weight is None else mul(ctx, value, weight)), None


def _mean(ctx: Context, x: Sum, shape: list[int]) -> Tensor:
    """The matrix of the mean over the last dimensions, which have this shape."""
    inner = x.layout[len(x.layout) - len(shape) :]
    if any(axis != "c" for dim in inner for axis, n in dim if n > 1):
        raise Unsupported("normalisation over positions or samples")
    normalised = math.prod(num_channels(dim) for dim in inner)
    block = ctx.identity(normalised).new_full((normalised, normalised), 1 / normalised)
    mean: Tensor = torch.block_diag(*[block] * (x.size("c") // normalised))
    return mean


def _over_deviation(ctx: Context, x: Sum, mean: Tensor, eps: float) -> Sum:
    """``x / sqrt(mean of squares of x + eps)``."""
    if eps <= 0:
        raise Unsupported("normalisation whose eps is 0")
    variance = ctx.linear(multiplied(ctx, x, x, x.layout))
    # Both sides of the quotient are scaled so that the variance plus eps is at least 1, as norm wants it.
    variance = variance.map_columns(partial(times, by=mean / eps), x.layout)
    variance = total([variance, Sum(x.layout, {}, torch.ones_like(mean[0]))])
    value = concatenated([scaled(x, eps**-0.5), variance], x.layout)
    value.activation = "norm"
    return value


@rule("rsqrt")
def rsqrt(ctx: Context, x: Sum) -> Sum:
    """``1 / sqrt(x)`` of squares and a positive number, which bounds x from below, as norm wants it."""
    x = ctx.linear(x)
    squares = x.labels is None and all(
        source >= 0 and _is_square(ctx, source) and bool((matrix >= 0).all())
        for (source, _, _), matrix in x.taps.items()
    )
    if not squares or x.bias is None or not (x.bias > 0).all():
        raise Unsupported("rsqrt, but of squares and a positive number")
    ones = Sum(x.layout, {}, x.bias.rsqrt(), stride=x.stride)
    value = concatenated([ones, scaled(x, 1 / x.bias)], x.layout)
    value.activation = "norm"
    return value


def _is_square(ctx: Context, number: int) -> bool:
    """Whether a step is the product of a value with itself."""
    step = ctx.builder.steps[number]
    if step.activation != "product":
        return False
    names = [term.weight for term in step.terms] + [step.bias, step.label_bias]
    tensors = [
        ctx.builder.weights[name] for name in names if name is not None and name not in ctx.map_weights
    ]
    tensors += [matrix for name in names for _, matrix in ctx.map_weights.get(name or "", [])]
    halves = [tensor.chunk(2, dim=-1) for tensor in tensors]
    bare = any(term.weight is None for term in step.terms)
    return not bare and all(torch.equal(*pair) for pair in halves)
