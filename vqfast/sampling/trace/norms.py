"""Rules of normalisations: over samples by running statistics, and over the channels of a position."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

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
    x, inner = ctx.linear(x), x.layout[len(x.layout) - len(shape) :]
    if any(axis != "c" for dim in inner for axis, _ in dim):
        raise Unsupported("layer normalisation over positions or samples")
    if eps <= 0:
        raise Unsupported("layer normalisation whose eps is 0")
    normalised = math.prod(num_channels(dim) for dim in inner)
    mean = torch.block_diag(
        *[ctx.identity(normalised).new_full((normalised, normalised), 1 / normalised)]
        * (x.size("c") // normalised)
    )
    centred = ctx.readable(x.map_columns(partial(times, by=ctx.identity(len(mean)) - mean), x.layout), [])
    variance = ctx.linear(multiplied(ctx, centred, centred, x.layout))
    # Both sides of the quotient are scaled so that the variance plus eps is at least 1, as norm wants it.
    variance = variance.map_columns(partial(times, by=mean / eps), x.layout)
    variance = total([variance, Sum(x.layout, {}, torch.ones_like(mean[0]))])
    value = concatenated([scaled(centred, eps**-0.5), variance], x.layout)
    value.activation = "norm"
    if weight is not None:
        value = mul(ctx, value, weight)
    return (value if bias is None else add(ctx, value, bias)), None, None
