"""Rules of sums, products, convolutions and activations."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vqfast.prior.trace.rules import RULES, rule
from vqfast.prior.trace.values import (
    Grid,
    Known,
    Unsupported,
    beside,
    channels,
    is_one,
    total,
)

if TYPE_CHECKING:
    from vqfast.prior.trace.lower import Lowering


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
    """A product with what is the same everywhere, or a gate."""
    grids = [value for value in (a, b) if isinstance(value, Grid)]
    if len(grids) == 2:
        return gate(low, *sorted(grids, key=lambda grid: grid.activation, reverse=True))
    layout = low.layout(a, b)
    by = low.lift(b if isinstance(a, Grid) else a, layout)
    if by.bias is None:
        raise Unsupported("a product with what isn't the same at every position and for every label")
    return scaled(low.lift(grids[0], layout), by.bias)


def gate(low: Lowering, a: Grid, b: Grid) -> Grid:
    """``tanh(a) * sigmoid(b)``."""
    if (a.activation, b.activation) != ("tanh", "sigmoid") or a.layout != b.layout:
        raise Unsupported("a product of two values that depend on the codes")
    joined = beside([Grid(x.layout, x.taps, x.bias, x.labels) for x in (a, b)], a.layout)
    joined.activation = "gate"
    return joined


@rule("div")
def div(low: Lowering, a: Grid, b: Any, **_: Any) -> Grid:
    """A quotient by what is the same everywhere."""
    if isinstance(b, Grid):
        raise Unsupported("a quotient by what depends on the codes")
    inverse = Known(1 / b.value, b.needs, b.node) if isinstance(b, Known) else 1 / b
    return mul(low, a, inverse)


def activation(name: str, *defaults: Any) -> None:
    """The rule of an activation, of sums that are a step's."""

    def activated(low: Lowering, x: Grid, *args: Any, **kwargs: Any) -> Grid:
        if kwargs or args != defaults[: len(args)]:
            raise Unsupported(f"{name} with {', '.join(map(str, (*args, *kwargs.values())))}")
        x = low.plain(x)
        return Grid(x.layout, x.taps, x.bias, x.labels, name)

    RULES[name] = activated


for _name in ("relu", "tanh", "sigmoid"):
    activation(_name)


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
    sizes, taps = low.shape(), product(*map(range, kernel.shape[2:]))
    places = [(("yx"[-n], sizes[-n]),) for n in range(len(sizes) - 2, 0, -1)]
    layout = (x.layout[0], (("c", sizes[1]),), *places)
    alone = kernel.shape[2:] == (1, 1) and not any(padding)
    x = low.factor(x, len(kernel)) if alone else low.source(x)
    parts = [Grid(layout, {}, None if bias is None else bias.value)]
    for i, j in taps:
        by = kernel[:, :, i, j].T
        if (by != 0).any():
            at = i * dilation[0] - padding[0], j * dilation[1] - padding[1]
            parts.append(x.mapped(partial(times, by=by), layout).moved(*at))
    return total(parts)


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
