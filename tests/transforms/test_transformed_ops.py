"""Every op under ``torch.func`` and in forward mode, beside plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.transforms.plain import (
    SAMPLES,
    codes,
    convolved,
    distance,
    draw,
    gated,
    numbers,
    outputs,
    straight,
    straight_stages,
    total,
)
from vqfast import functional

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # torch itself, in forward mode
]


def conv(mask_type: str, activation: str) -> tuple[Callable, Callable, list[Tensor]]:
    """Of ours, its twin, and arguments."""
    after = {"none": lambda x: x, "relu": F.relu, "gate": gated}[activation]
    channels = 2 if activation == "gate" else 4

    def ours(x, weight, bias, extra, residual):
        options = {"mask_type": mask_type, "activation": activation}
        return functional.masked_conv2d(x, weight, bias, extra=extra, residual=residual, **options)

    def twin(x, weight, bias, extra, residual):
        return after(convolved(x, weight, bias, extra, mask_type)) + residual

    return (
        ours,
        twin,
        [draw(1, 3, 4, 3), draw(4, 3, 3, 3), draw(4), draw(1, 4, 1, 1), draw(1, channels, 4, 3)],
    )


def conv1d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(x, weight * torch.tensor([1.0, 1, 0], dtype=x.dtype), padding=1)


OPS = {
    "quantize": (
        lambda z, book: (lambda out: (out[0], out[2], out[3]))(functional.quantize(z, book)),
        straight,
        [draw(2, 3, 4), draw(5, 3)],
    ),
    "quantize_last": (
        lambda z, book: (lambda out: (out[0], out[2] - out[3]))(functional.quantize(z, book, channel_dim=-1)),
        lambda z, book: (lambda out: (out[0], out[1] - out[2]))(straight(z, book, -1)),
        [draw(2, 4, 3), draw(5, 3)],
    ),
    "residual_quantize": (
        lambda z, books: (lambda out: (out[0], out[2], out[3]))(functional.residual_quantize(z, books)),
        straight_stages,
        [draw(2, 3, 4), draw(2, 5, 3)],
    ),
    "nearest_code": (
        lambda x, book: functional.nearest_code(x, book, return_distances=True)[1],
        distance,
        [draw(6, 3), draw(5, 3)],
    ),
    "gate": (
        lambda x, extra: functional.gate(x, extra=extra),
        lambda x, extra: gated(x + extra),
        [draw(1, 4, 3, 2), draw(1, 4, 1, 1)],
    ),
    "masked_conv1d": (
        lambda x, weight: functional.masked_conv1d(x, weight, mask_type="B"),
        conv1d,
        [draw(1, 2, 5), draw(3, 2, 3)],
    ),
    **{
        f"masked_conv2d_{mask_type}_{activation}": conv(mask_type, activation)
        for mask_type, activation in (("A", "none"), ("B", "relu"), ("B", "gate"))
    },
}


@pytest.fixture(params=OPS)
def op(request) -> tuple[Callable, Callable, list[Tensor]]:
    return OPS[request.param]


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians(op, jacobian) -> None:
    ours, twin, given = op
    torch.testing.assert_close(ours(*given), twin(*given))
    got, want = (jacobian(each, numbers(given))(*given) for each in (ours, twin))
    torch.testing.assert_close(got, want)


def test_products_with_tangents_and_cotangents(op) -> None:
    ours, twin, given = op
    tangents = tuple(map(torch.randn_like, given))
    torch.testing.assert_close(jvp(ours, tuple(given), tangents), jvp(twin, tuple(given), tangents))
    (got, pull), (_, twin_pull) = (vjp(each, *given) for each in (ours, twin))
    cotangents = tuple(map(torch.randn_like, outputs(got)))
    cotangents = cotangents[0] if isinstance(got, Tensor) else cotangents
    torch.testing.assert_close(pull(cotangents), twin_pull(cotangents))


def test_second_derivatives(op) -> None:
    ours, twin, given = op
    got, want = (hessian(total(each), numbers(given))(*given) for each in (ours, twin))
    torch.testing.assert_close(got, want)
    for inner, outer in ((jacfwd, jacfwd), (jacfwd, jacrev), (jacrev, jacrev)):
        nested = outer(inner(total(ours), numbers(given)), numbers(given))(*given)
        torch.testing.assert_close(nested, want)


def dual_tangents(function: Callable, given: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, given, tangents)
        return [forward_ad.unpack_dual(value).tangent for value in outputs(function(*duals))]


def test_dual_tensors(op) -> None:
    ours, twin, given = op
    tangents = list(map(torch.randn_like, given))
    got, want = (dual_tangents(each, given, tangents) for each in (ours, twin))
    torch.testing.assert_close(got, want)


def test_dual_tensors_through_a_gradient(op) -> None:
    """Forward mode over the tape, of which the op's own backward is a part."""
    ours, twin, given = op
    tangents = list(map(torch.randn_like, given))

    def gradients(function: Callable) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in given]
        with forward_ad.dual_level():
            loss = total(function)(*map(forward_ad.make_dual, leaves, tangents))
            found = torch.autograd.grad(loss, leaves)
            return [forward_ad.unpack_dual(value).tangent for value in found]

    torch.testing.assert_close(gradients(ours), gradients(twin))


def test_tangents_of_cotangents(op) -> None:
    """The tape is made first, and run with dual or with batched cotangents."""
    ours, twin, given = op

    def backward(function: Callable) -> list[Tensor]:
        torch.manual_seed(0)
        leaves = [value.clone().requires_grad_() for value in given]
        values = outputs(function(*leaves))
        many = [torch.randn(2, *value.shape, dtype=value.dtype) for value in values]
        found = list(torch.autograd.grad(values, leaves, many, retain_graph=True, is_grads_batched=True))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*each) for each in many]
            pulled = torch.autograd.grad(values, leaves, duals, retain_graph=True)
            found += [forward_ad.unpack_dual(value).tangent for value in pulled]
        return found

    torch.testing.assert_close(backward(ours), backward(twin))


def stacked(given: list[Tensor], dims: tuple[int | None, ...]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Arguments with a dimension of samples, and those of each sample."""
    many = [
        value if dim is None else torch.randn(SAMPLES, *value.shape, dtype=value.dtype).movedim(0, dim)
        for value, dim in zip(given, dims, strict=True)
    ]
    each = [
        [v if d is None else v.select(d, i) for v, d in zip(many, dims, strict=True)] for i in range(SAMPLES)
    ]
    return many, each


def layouts(given: list[Tensor]) -> list[tuple[int | None, ...]]:
    """All with samples, the first only, all but the first."""
    rest = len(given) - 1
    return [(0,) * len(given), (1, *[None] * rest), (None, *[1] * rest)]


@pytest.mark.parametrize("layout", range(3))
def test_vmap_of_the_op_and_of_its_gradients(op, layout) -> None:
    ours, twin, given = op
    dims = layouts(given)[layout]
    many, each = stacked(given, dims)
    for function, want in (
        (ours, twin),
        (grad(total(ours), numbers(given)), grad(total(twin), numbers(given))),
    ):
        samples = [outputs(want(*sample)) for sample in each]
        got = outputs(vmap(function, dims)(*many))
        torch.testing.assert_close(got, tuple(map(torch.stack, zip(*samples, strict=True))))


def test_gradient_of_vmap(op) -> None:
    ours, twin, given = op
    many, each = stacked(given, (0,) * len(given))
    got = grad(lambda *given: total(vmap(ours))(*given), numbers(given))(*many)
    want = [grad(total(twin), numbers(given))(*sample) for sample in each]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*want, strict=True))))
    leaves = [value.clone().requires_grad_() for value in many]
    torch.testing.assert_close(torch.autograd.grad(total(vmap(ours))(*leaves), leaves), got)


def test_double_backward(op) -> None:
    ours, twin, given = op

    def twice(function: Callable) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in given]
        first = torch.autograd.grad(total(function)(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), leaves)

    torch.testing.assert_close(twice(ours), twice(twin))


INDICES = {
    "nearest_code": (functional.nearest_code, (6, 3), (5, 3)),
    "nearest_code_heads": (functional.nearest_code, (2, 6, 3), (2, 5, 3)),
    "nearest_code_cosine": (
        lambda x, book: functional.nearest_code(x, book, metric="cosine"),
        (6, 3),
        (5, 3),
    ),
    "nearest_unit_code": (functional.nearest_unit_code, (2, 6, 3), (5, 3)),
    "statistics": (
        lambda z, book: functional.quantize(z, book, return_statistics=True)[4:],
        (2, 3, 4),
        (5, 3),
    ),
}


@pytest.mark.parametrize("dims", [(0, 0), (1, None), (None, 2)])
@pytest.mark.parametrize("name", INDICES)
def test_vmap_of_ops_without_gradient(name, dims) -> None:
    function, *shapes = INDICES[name]
    many, each = stacked([draw(*shape) for shape in shapes], dims)
    samples = [outputs(function(*sample)) for sample in each]
    got = outputs(vmap(function, dims)(*many))
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*samples, strict=True))))


def test_vmap_of_perplexity_reads_all_samples() -> None:
    indices = codes(SAMPLES, 2, 4)
    got = vmap(lambda sample: functional.perplexity(sample, 5))(indices)
    torch.testing.assert_close(got, torch.stack([functional.perplexity(each, 5) for each in indices]))
    with pytest.raises(ValueError, match=r"indices has values 1\.\.5; want -1\.\.4"):
        vmap(lambda sample: functional.perplexity(sample, 5))(torch.arange(1, 6).view(5, 1))
