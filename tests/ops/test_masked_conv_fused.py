"""Activation, extra and residual in one pass with the masked convolution, and the gate alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.convolutions import DTYPES, LAYOUTS, TOLERANCE, arguments, truth
from vqfast.functional import gate, masked_conv2d
from vqfast.ops import library
from vqfast.ops.masked_conv import native

OP = "masked_conv"


def plain_gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


ACTIVATE = {"none": lambda x: x, "relu": torch.relu, "gate": plain_gate}
EXTRA = {"none": None, "sample": (1, 1), "position": (5, 7)}


def fused(
    activation: str, extra: str, residual: bool, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """x, weight, bias, extra and residual of a 3x3 kernel with 10 channels of sums."""
    tensors = arguments((4, 10), (2, 5, 7), 3, "full", "B")
    out = 5 if activation == "gate" else 10
    added = [torch.randn(2, 10, *EXTRA[extra]) if EXTRA[extra] else None]
    added.append(torch.randn(2, out, 5, 7) if residual else None)
    return [None if t is None else t.to(dtype) for t in (*tensors, *added)]


def run_fused(tensors: list[Tensor | None], activation: str) -> Tensor:
    *tensors, extra, residual = tensors
    return masked_conv2d(*tensors, mask_type="B", activation=activation, extra=extra, residual=residual)


def unfused(tensors: list[Tensor | None], activation: str) -> Tensor:
    *tensors, extra, residual = tensors
    sums = truth(*tensors, 3, "B", "full", 1)
    sums = sums if extra is None else sums + extra.double()
    out = ACTIVATE[activation](sums)
    return out if residual is None else out + residual.double()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("activation", ACTIVATE)
def test_activation_extra_and_residual_equal_the_formula(
    backend, activation, extra, residual, dtype, layout
) -> None:
    tensors = fused(activation, extra, residual, dtype)
    tensors = [t if t is None or t.ndim == 1 else LAYOUTS[layout](t) for t in tensors]
    inputs = [None if t is None else t.detach().requires_grad_() for t in tensors]
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    out, want = run_fused(inputs, activation), unfused(doubles, activation)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.dtype == dtype and out.is_contiguous(memory_format=format)
    grad = torch.randn(want.shape).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    assert inputs[0].grad.is_contiguous(memory_format=format)
    grads = [(a.grad, b.grad) for a, b in zip(inputs, doubles, strict=True) if a is not None]
    for got, wanted in [(out, want), *grads]:
        tolerance = TOLERANCE[dtype] * max(1, wanted.abs().max().item())
        torch.testing.assert_close(got.double(), wanted, rtol=TOLERANCE[dtype], atol=tolerance)


@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("activation", ["relu", "gate"])
def test_fused_gradcheck_and_gradgradcheck(backend, activation, extra) -> None:
    torch.manual_seed(1)
    x, weight, bias = (t.double() for t in arguments((2, 2), (1, 2, 2), 3, "full", "B"))
    added = [torch.randn(1, 2, *(1, 1) if extra == "sample" else (2, 2)).double() if EXTRA[extra] else None]
    added.append(torch.randn(1, 1 if activation == "gate" else 2, 2, 2).double())
    tensors = [t if t is None else t.requires_grad_() for t in (x, weight, bias, *added)]

    def conv(*tensors):
        return run_fused(tensors, activation)

    torch.autograd.gradcheck(conv, tensors)
    torch.autograd.gradgradcheck(conv, tensors)


def given_extra(x: Tensor, extra: Tensor | None = None) -> Tensor:
    return gate(x, extra=extra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", EXTRA)
def test_gate_equals_the_formula(backend, extra, layout, dtype) -> None:
    x = LAYOUTS[layout]((3 * torch.randn(2, 10, 5, 7)).to(dtype)).requires_grad_()
    added = None if EXTRA[extra] is None else torch.randn(2, 10, *EXTRA[extra]).to(dtype).requires_grad_()
    inputs = [t for t in (x, added) if t is not None]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    out, want = given_extra(*inputs), plain_gate(sum(doubles))
    grad = torch.randn(2, 5, 5, 7)
    grads = torch.autograd.grad(out, inputs, grad.to(dtype))
    wanted = torch.autograd.grad(want, doubles, grad.to(dtype).double())
    for a, b in zip((out, *grads), (want, *wanted), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10)
    if dtype == torch.float64 and layout != "expanded":  # whose elements have no differences of their own
        few = [t.detach()[:, :4, :2, :3].requires_grad_() for t in inputs]
        torch.autograd.gradcheck(given_extra, few)
        torch.autograd.gradgradcheck(given_extra, few)


@pytest.mark.parametrize("shape", [(3, 1, 1), (70, 1, 1), (2, 1, 200), (2, 200, 1), (2, 13, 65), (0, 4, 4)])
@pytest.mark.parametrize("channels", [(3, 70), (70, 2), (130, 34)])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sizes_beside_those_of_a_tile(backend, layout, size, channels, shape) -> None:
    tensors = arguments(channels, shape, size, "full", "B")
    extra, residual = (
        torch.randn(len(tensors[0]), channels[1], 1, 1),
        torch.randn(shape[0], channels[1], *shape[1:]),
    )
    tensors = [LAYOUTS[layout](t) if t.ndim == 4 else t for t in (*tensors, extra, residual)]
    inputs, doubles = (
        [t.detach().to(d or t.dtype).requires_grad_() for t in tensors] for d in (None, torch.float64)
    )
    out = run_fused(inputs, "relu")
    *plain, extra, residual = doubles
    want = (truth(*plain, size, "B", "full", 1) + extra).relu() + residual
    grad = torch.randn(want.shape)
    out.backward(grad)
    want.backward(grad.double())
    for got, wanted in [(out, want), *((a.grad, b.grad) for a, b in zip(inputs, doubles, strict=True))]:
        largest = wanted.abs().max().item() if wanted.numel() else 0
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * max(1, largest))


def test_gate_of_extremes_saturates(backend) -> None:
    x = torch.tensor([1000.0, -1000, 1000, 0, torch.nan, 0, 1000, 1000, -1000, -1000, 0, torch.nan])
    x = x.view(1, 2, 1, 6)
    torch.testing.assert_close(gate(x), plain_gate(x), equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 4, 0, 5), (2, 4, 5, 0), (2, 0, 5, 5), (0, 4, 5, 5)])
@pytest.mark.parametrize("extra", [False, True])
def test_gate_of_nothing(backend, extra, shape) -> None:
    x = torch.randn(shape, requires_grad=True)
    out = gate(x, extra=torch.randn(*shape[:2], 1, 1) if extra else None)
    assert out.shape == (shape[0], shape[1] // 2, *shape[2:])
    out.sum().backward()
    assert x.grad.shape == shape


def test_fused_compiles_into_one_graph(backend) -> None:
    torch.compiler.reset()
    tensors = [t.requires_grad_() for t in fused("gate", "position", True)]
    compiled = torch.compile(run_fused, fullgraph=True, backend="aot_eager")
    outputs = compiled(tensors, "gate"), run_fused(tensors, "gate")
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(out.sin().sum(), tensors) for out in outputs))


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32(backend) -> None:
    tensors = [t.requires_grad_() for t in arguments((3, 4), (2, 5, 5), 3, "full", "B")]
    extra, residual = torch.randn(2, 4, 1, 1, requires_grad=True), torch.randn(2, 4, 5, 5, requires_grad=True)
    tensors += [extra, residual]
    with torch.autocast("cpu", torch.bfloat16):
        out = run_fused(tensors, "relu")
    assert out.dtype == torch.bfloat16
    rounded = [t.detach().bfloat16().double() for t in tensors]
    torch.testing.assert_close(out.double(), unfused(rounded, "relu"), rtol=1e-2, atol=3e-2)
    out.float().sum().backward()
    assert {t.grad.dtype for t in tensors} == {torch.float32}


def test_autocast_leaves_float64_alone_as_conv2d_does(backend) -> None:
    tensors = [t.double() for t in arguments((3, 4), (2, 5, 5), 3, "full", "B")]
    with torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(*tensors).dtype == torch.float64
        assert masked_conv2d(*tensors, mask_type="B").dtype == torch.float64


@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("activation", ACTIVATE)
def test_where_the_cpu_has_tiles_bfloat16_is_pytorchs(monkeypatch, activation: str, extra: str) -> None:
    """The whole convolution, in place of the native one."""
    monkeypatch.setattr(native, "_LARGE", 1)
    monkeypatch.setattr(library, "instruction_set", lambda: "amx")
    tensors = fused(activation, extra, True, torch.bfloat16)
    inputs = [None if t is None else t.detach().requires_grad_() for t in tensors]
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    x, weight, bias, *added = inputs
    assert x is not None and weight is not None
    out, sums = native.masked_conv2d(x, weight, bias, *added, 5, [1, 1], [1, 1], activation)
    wanted = unfused(doubles, activation)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())
    assert len(sums.shape) == (4 if activation == "gate" or activation == "relu" else 1)
    grad = torch.randn(2, 10, 5, 7)
    got = native.masked_conv2d_backward(grad.bfloat16(), x.detach(), weight.detach(), 5, [1, 1], [1, 1])
    assert doubles[0] is not None and doubles[1] is not None and doubles[2] is not None
    truth(*doubles[:3], 3, "B", "full", 1).backward(grad.bfloat16().double())
    for found, tensor in zip(got, doubles, strict=False):
        true = tensor.grad
        torch.testing.assert_close(found.double(), true, rtol=2e-2, atol=2e-2 * true.abs().max().item())
