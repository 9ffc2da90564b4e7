"""Rules of sums, products, convolutions and activations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqfast.sampling.trace.rules import RULES, rule
from vqfast.sampling.trace.shapes import split
from vqfast.sampling.trace.values import (
    Grid,
    Known,
    Layout,
    Unsupported,
    beside,
    channels,
    is_one,
    shape_of,
    total,
)

if TYPE_CHECKING:
    from vqfast.sampling.trace.lower import Lowering


@rule("add")
def add(low: Lowering, a: Any, b: Any, alpha: float = 1) -> Grid:
    """A sum."""
    layout = low.layout(a, b)
    return total([low.lift(a, layout), scaled(low.lift(b, layout), alpha)])


@rule("sub")
def sub(low: Lowering, a: Any, b: Any, alpha: float = 1) -> Grid:
    """A difference."""
    return add(low, a, b, -alpha)


@rule("rsub")
def rsub(low: Lowering, a: Any, b: Any, alpha: float = 1) -> Grid:
    """A difference the other way round."""
    return add(low, b, a, -alpha)


@rule("neg")
def neg(low: Lowering, x: Grid) -> Grid:
    """The negative."""
    return scaled(low.plain(x), -1)


def scaled(x: Grid, by: float | Tensor) -> Grid:
    """A grid times a number, or one for each column."""
    return x if isinstance(by, (int, float)) and by == 1 else x.mapped(lambda columns: columns * by, x.layout)


@rule("mul")
def mul(low: Lowering, a: Any, b: Any) -> Grid:
    """A product with what is the same everywhere, or of two values."""
    layout = low.layout(a, b)
    if isinstance(a, Grid) and isinstance(b, Grid):
        return multiplied(low, *((b, a) if a.activation == "sigmoid" else (a, b)), layout)
    by = low.lift(b if isinstance(a, Grid) else a, layout)
    if by.bias is None:
        raise Unsupported("a product with what isn't the same at every position and for every label")
    return scaled(low.lift(a if isinstance(a, Grid) else b, layout), by.bias)


def multiplied(low: Lowering, a: Grid, b: Grid, layout: Layout) -> Grid:
    """The product of two values; that of a tanh, or of anything, and a sigmoid is one step's."""
    name = "product"
    if b.activation == "sigmoid" and a.layout == b.layout:
        name, b = "glu", sums(b)
        if a.activation == "tanh":
            name, a = "gate", sums(a)
    joined = beside([low.lift(a, layout), low.lift(b, layout)], layout)
    joined.activation = name
    return joined


def sums(x: Grid) -> Grid:
    """A grid before its activation."""
    return Grid(x.layout, x.taps, x.bias, x.labels)


@rule("glu")
def glu(low: Lowering, x: Grid, dim: int = -1) -> Grid:
    """The first half times the sigmoid of the second."""
    a, b = split(low, x, shape_of(x.layout)[dim] // 2, dim)
    return multiplied(low, a, activated(low, b, "sigmoid"), low.layout(a, b))


@rule("pow")
def power(low: Lowering, x: Grid, exponent: Any) -> Grid:
    """A square."""
    if exponent != 2:
        raise Unsupported(f"the power {exponent} of what depends on the codes")
    x = low.source(x, [])
    return mul(low, x, x)


@rule("div")
def div(low: Lowering, a: Grid, b: Any, **_: Any) -> Grid:
    """A quotient by what is the same everywhere."""
    if isinstance(b, Grid):
        raise Unsupported("a quotient by what depends on the codes")
    inverse = Known(1 / b.value, b.needs, b.node) if isinstance(b, Known) else 1 / b
    return mul(low, a, inverse)


# Activations


def activated(low: Lowering, x: Grid, name: str) -> Grid:
    """An activation of sums, which are a step's."""
    return replace(sums(low.plain(x)), activation=name)


for _name in ("relu", "silu", "sigmoid", "tanh"):
    RULES[_name] = partial(activated, name=_name)


def mixed(low: Lowering, *parts: tuple[float, Grid]) -> Grid:
    """A sum of activated values, each times a number."""
    return total([scaled(low.plain(part), by) for by, part in parts])


@rule("elu")
def elu(low: Lowering, x: Grid, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Grid:
    """``alpha (exp(x) - 1)`` below zero: a sum of ELU and ReLU."""
    if input_scale != 1:
        raise Unsupported(f"elu of input_scale {input_scale}")
    if alpha == scale == 1:
        return activated(low, x, "elu")
    x = low.source(x, [])
    below, above = activated(low, x, "elu"), activated(low, x, "relu")
    return mixed(low, (alpha * scale, below), ((1 - alpha) * scale, above))


@rule("leaky_relu")
def leaky_relu(low: Lowering, x: Grid, slope: float = 0.01) -> Grid:
    """``slope x`` below zero: a sum of ReLU and the value."""
    x = low.source(x, [])
    return mixed(low, (1 - slope, activated(low, x, "relu")), (slope, x))


@rule("gelu")
def gelu(low: Lowering, x: Grid, approximate: str = "none") -> Grid:
    """``x`` times the normal distribution's probability of less."""
    if approximate != "none":
        raise Unsupported(f"gelu that is approximate by {approximate}")
    return activated(low, x, "gelu")


@rule("clamp", "clamp_min")
def clamp(low: Lowering, x: Grid, least: float | None = None, most: float | None = None) -> Grid:
    """Bounds: a ReLU, or the difference of two."""
    if least is None:
        return scaled(clamp(low, scaled(low.plain(x), -1), -(most or 0)), -1)
    bounds = [least] if most is None else [least, most]
    x = low.plain(x) if most is None else low.source(x, [])
    above = [activated(low, shifted(low, x, -bound), "relu") for bound in bounds]
    return shifted(low, mixed(low, *zip((1, -1), above, strict=False)), least)


@rule("hardtanh")
def hardtanh(low: Lowering, x: Grid, least: float = -1, most: float = 1) -> Grid:
    """See ``clamp``."""
    return clamp(low, x, least, most)


def shifted(low: Lowering, x: Grid, by: float) -> Grid:
    """A grid plus a number."""
    return total([x, Grid(x.layout, {}, torch.full_like(low.one(1)[0], by).expand(x.size("c")))])


# Linear maps


@rule("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit")
def batch_norm(
    low: Lowering, x: Grid, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _: float, eps: float
) -> tuple[Any, ...]:
    """A scale and a shift of each channel."""
    if training or mean is None:
        raise Unsupported("batch normalisation in training mode; call .eval() first")
    scale = (var.value + eps).rsqrt() * (1 if weight is None else weight.value)
    shift = (0 if bias is None else bias.value) - mean.value * scale
    x = scaled(low.plain(x), scale)
    return total([x, Grid(x.layout, {}, shift)]), None, None


@rule("_native_batch_norm_legit_no_training")
def batch_norm_eval(low: Lowering, *args: Any) -> tuple[Any, ...]:
    """See ``batch_norm``."""
    return batch_norm(low, *args[:5], False, *args[5:])


@rule("convolution")
def convolution(
    low: Lowering, x: Grid, weight: Known, bias: Known | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, _: list[int], groups: int,
) -> Grid:  # fmt: skip
    """Products at nearby positions."""
    if isinstance(weight, Grid) or isinstance(bias, Grid):
        raise Unsupported("a convolution by what depends on the codes")
    if transposed or any(s != 1 for s in stride):
        raise Unsupported("a transposed convolution" if transposed else f"a convolution of stride {stride}")
    axes = [{name for name, n in dim if n > 1} for dim in x.layout]
    wanted = [{"b"}, {"c"}, {"y"}, {"x"}] if len(axes) == 4 else [{"b"}, {"c"}, {"x"}]
    if any(not got <= want for got, want in zip(axes, wanted, strict=True)):
        raise Unsupported(f"a convolution along {axes}")
    kernel = dense(weight.value, groups)
    if len(axes) == 3:
        kernel, padding, dilation = kernel.unsqueeze(2), [0, *padding], [1, *dilation]
    sizes = low.shape()
    places = [(("yx"[-n], sizes[-n]),) for n in range(len(sizes) - 2, 0, -1)]
    layout = (x.layout[0], (("c", sizes[1]),), *places)
    taps = [
        ((i * dilation[0] - padding[0], j * dilation[1] - padding[1]), kernel[:, :, i, j].T)
        for i, j in product(*map(range, kernel.shape[2:]))
        if (kernel[:, :, i, j] != 0).any()
    ]
    if kernel.shape[2:] == (1, 1) and not any(padding):
        x = low.factor(x, len(kernel))
    else:
        x = low.source(x, [at for at, _ in taps] if any(padding) else [])
    parts = [x.mapped(partial(times, by=by), layout).moved(*at) for at, by in taps]
    return total([Grid(layout, {}, None if bias is None else bias.value), *parts])


def dense(weight: Tensor, groups: int) -> Tensor:
    """The weight of a convolution in groups as that of one without."""
    if groups == 1:
        return weight
    out, inputs, *size = weight.shape
    whole = weight.new_zeros(out, groups, inputs, *size)
    for group, part in enumerate(weight.chunk(groups)):
        rows = out // groups
        whole[group * rows : (group + 1) * rows, group] = part
    return whole.flatten(1, 2)


def times(matrix: Tensor, by: Tensor) -> Tensor:
    """``matrix @ by``."""
    return by if is_one(matrix) else matrix.to(by.dtype) @ by


@rule("mm")
def mm(low: Lowering, x: Grid, weight: Known) -> Grid:
    """Channels times a matrix."""
    if not isinstance(x, Grid) or isinstance(weight, Grid):
        raise Unsupported("a matrix product with what depends on the codes on its right")
    if any(name == "c" for name, _ in x.layout[0]) or any(name != "c" for name, _ in x.layout[1]):
        raise Unsupported("a matrix product along the grid")
    layout = (x.layout[0], (("c", weight.value.shape[1]),))
    return low.factor(x, weight.value.shape[1]).mapped(partial(times, by=weight.value), layout)


@rule("addmm")
def addmm(low: Lowering, bias: Known, x: Grid, weight: Known, beta: float = 1, alpha: float = 1) -> Grid:
    """Channels times a matrix, plus a bias."""
    y = scaled(mm(low, x, weight), alpha)
    return add(low, y, bias, beta)


@rule("_log_softmax")
def log_softmax(low: Lowering, x: Grid, dim: int, _: bool) -> Grid:
    """Logits, up to a constant a position, which changes no draw: only as the result."""
    if any(name != "c" for name, _ in x.layout[dim]) or channels(x.layout[dim]) != x.size("c"):
        raise Unsupported("log_softmax over more than the channels")
    if not leads_out(low.node):
        raise Unsupported("log_softmax inside of the network")
    return x


def leads_out(node: Any) -> bool:
    """Whether nothing but views of a node is returned."""
    views = ("permute", "view", "transpose", "clone", "_unsafe_view", "alias", "detach")
    return all(
        user.op == "output" or (user.target.overloadpacket.__name__ in views and leads_out(user))
        for user in node.users
    )


@rule("_softmax")
def softmax(low: Lowering, x: Grid, *_: Any) -> Grid:
    """Probabilities aren't logits."""
    last = "; return the logits" if leads_out(low.node) else ""
    raise Unsupported(f"softmax{last}")
