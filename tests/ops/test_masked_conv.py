"""Masks, stacks, layouts and sizes of the masked convolution, with all its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.convolutions import DTYPES, LAYOUTS, TOLERANCE, arguments, truth
from vqfast.functional import kernel_shape, masked_conv1d, masked_conv2d
from vqfast.ops.masked_conv import native, op

OP = "masked_conv"
KINDS = [(stack, mask) for stack in ("full", "vertical", "horizontal") for mask in "AB"]


def check(x: Tensor, weight: Tensor, bias: Tensor | None, size: int, *kind) -> None:
    """Output and all gradients against those of the explicitly padded kernel, in float64."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    mask, stack, dilation = kind
    out = masked_conv2d(*inputs, mask_type=mask, stack=stack, dilation=dilation)
    want = truth(*doubles, size, *kind)
    grad = torch.randn(want.shape).to(x.dtype)
    out.backward(grad)
    want.backward(grad.double())
    got = [out, *(t.grad for t in inputs if t is not None)]
    wanted = [want, *(t.grad for t in doubles if t is not None)]
    for a, b in zip(got, wanted, strict=True):
        largest = b.detach().abs().max().item() if b.numel() else 0
        tolerance = TOLERANCE[x.dtype]
        torch.testing.assert_close(a, b.to(x.dtype), rtol=tolerance, atol=tolerance * max(1, largest))


@given(data=st.data())
def test_equals_an_ordinary_convolution_with_the_padded_kernel(backend, data) -> None:
    stack, mask = data.draw(st.sampled_from(KINDS))
    size, dilation = data.draw(st.sampled_from([1, 3, 5, 7])), data.draw(st.integers(1, 3))
    assume(0 not in kernel_shape(size, mask, stack))
    batch, *extent = (data.draw(st.integers(low, 9)) for low in (0, 1, 1))
    channels = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dtype = data.draw(st.sampled_from(DTYPES))
    x, weight, bias = (t.to(dtype) for t in arguments(channels, (batch, *extent), size, stack, mask))
    check(x, weight, bias if data.draw(st.booleans()) else None, size, mask, stack, dilation)


@pytest.mark.parametrize("stack, mask", KINDS)
@pytest.mark.parametrize(
    "extent, dilation", [((1, 1), 1), ((1, 1), 2), ((1, 3), 4), ((3, 1), 4), ((2, 2), 3)]
)
def test_grids_smaller_than_the_kernel(backend, extent, dilation, stack, mask) -> None:
    check(*arguments((2, 3), (2, *extent), 5, stack, mask), 5, mask, stack, dilation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack, mask", [("full", "A"), ("vertical", "B")])
@pytest.mark.parametrize(
    "channels, shape",
    [((1, 17), (3, 1, 1000)), ((17, 3), (1, 17, 3)), ((1000, 3), (1, 1, 3)), ((3, 1000), (1, 3, 1))],
)
def test_odd_sizes(backend, channels, shape, stack, mask, dtype) -> None:
    tensors = arguments(channels, shape, 3, stack, mask)
    check(*(t.to(dtype) for t in tensors), 3, mask, stack, 1)


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stack, mask", [("full", "B"), ("vertical", "A")])
def test_any_strides(backend, layout, weight_layout, stack, mask) -> None:
    x, weight, bias = arguments((4, 6), (2, 5, 7), 3, stack, mask)
    check(LAYOUTS[layout](x), LAYOUTS[weight_layout](weight), bias, 3, mask, stack, 1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("mask", ["A", "B"])
def test_hidden_taps_never_count_and_have_gradient_zero(backend, mask, bad) -> None:
    x, weight, bias = arguments((4, 6), (2, 5, 7), 5, "full", mask)
    hidden = torch.arange(25).view(5, 5) >= 12 + (mask == "B")
    poisoned = weight.clone()
    poisoned[:, :, hidden] = bad
    poisoned.requires_grad_()
    x.requires_grad_()
    out = masked_conv2d(x, poisoned, bias, mask_type=mask)
    assert torch.equal(out, masked_conv2d(x, weight, bias, mask_type=mask))
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert poisoned.grad[:, :, ~hidden].all()
    assert torch.equal(poisoned.grad[:, :, hidden], torch.zeros(6, 4, int(hidden.sum())))


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("stack", ["full", "horizontal"])
@pytest.mark.parametrize("length, dilation", [(1, 1), (7, 1), (7, 3)])
def test_masked_conv1d_equals_a_loop_over_time_and_taps(backend, stack, mask, length, dilation) -> None:
    width = kernel_shape(5, mask, stack)[1]
    x, weight, bias = torch.randn(2, 3, length), torch.randn(4, 3, width), torch.randn(4)
    want = bias[:, None].repeat(2, 1, length)
    for t in range(length):
        for tap in range(2 + (mask == "B")):
            source = t + (tap - 2) * dilation
            if source >= 0:
                want[:, :, t] += x[:, :, source] @ weight[:, :, tap].T
    out = masked_conv1d(x, weight, bias, mask_type=mask, stack=stack, dilation=dilation)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("stack, mask", [("full", "B"), ("vertical", "A"), ("horizontal", "B")])
def test_gradcheck_and_gradgradcheck(backend, stack, mask) -> None:
    tensors = [t.double().requires_grad_() for t in arguments((2, 2), (1, 3, 2), 3, stack, mask)]

    def conv(*tensors):
        return masked_conv2d(*tensors, mask_type=mask, stack=stack)

    torch.autograd.gradcheck(conv, tensors)
    torch.autograd.gradgradcheck(conv, tensors)


def test_third_derivative_equals_that_of_the_padded_kernel(backend) -> None:
    x, weight, bias = (t.double().requires_grad_() for t in arguments((2, 2), (1, 3, 2), 3, "full", "B"))

    def third(conv) -> Tensor:
        value = conv(x, weight, bias).tanh().sum()
        for _ in range(2):
            value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
        return torch.autograd.grad(value, x)[0]

    want = third(lambda *tensors: truth(*tensors, 3, "B", "full", 1))
    torch.testing.assert_close(third(lambda *tensors: masked_conv2d(*tensors, mask_type="B")), want)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("stack, mask, has_bias", [("full", "A", True), ("vertical", "A", False)])
def test_opcheck(backend, layout, stack, mask, has_bias) -> None:
    x, weight, bias = (t.requires_grad_() for t in arguments((3, 4), (2, 5, 3), 3, stack, mask))
    taps, anchor = {"full": (4, [1, 1]), "vertical": (3, [1, 1])}[stack]
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    geometry = (taps, anchor, [1, 1])
    for activation, extra, residual in (("none", None, None), ("gate", (4, 1, 1), (2, 5, 3))):
        added = [None if size is None else torch.randn(2, *size) for size in (extra, residual)]
        arguments_ = (x, weight, bias if has_bias else None, *added, *geometry, activation)
        torch.library.opcheck(op.masked_conv2d, arguments_)
    grad = torch.randn(2, 4, 5, 3, requires_grad=True)
    torch.library.opcheck(op.masked_conv2d_backward, (grad, x, weight, *geometry))


@pytest.mark.parametrize("stack, mask", [("full", "B"), ("vertical", "A")])
def test_compiles_into_one_graph_for_any_batch_and_grid(backend, stack, mask) -> None:
    torch.compiler.reset()
    compiled = torch.compile(masked_conv2d, fullgraph=True, backend="aot_eager")
    for shape in ((2, 4, 5), (3, 4, 5), (5, 6, 7)):
        tensors = [t.requires_grad_() for t in arguments((3, 4), shape, 3, stack, mask)]
        outputs = [run(*tensors, mask_type=mask, stack=stack) for run in (compiled, masked_conv2d)]
        torch.testing.assert_close(*outputs)
        grads = [torch.autograd.grad(out.square().sum(), tensors) for out in outputs]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size, stack, mask", [(1, "full", "B"), (3, "horizontal", "A")])
def test_one_tap_of_many_channels(backend, size, stack, mask, layout, dtype) -> None:
    """The output's own position, or its neighbour, which also has a kernel of one weight."""
    x, weight, bias = (t.to(dtype) for t in arguments((64, 48), (3, 16, 17), size, stack, mask))
    check(LAYOUTS[layout](x), weight, bias, size, mask, stack, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [True, False])
def test_a_1x1_kernel_is_pytorchs_where_that_is_as_fast(monkeypatch, wide: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(native, "_WIDE", wide)
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    weight = torch.empty(64, 64, 1, 1, dtype=dtype)
    x = torch.empty(2, 64, 32, 32, dtype=dtype)
    kept = wide or dtype == torch.float32  # by channels last tensors
    last = x.to(memory_format=torch.channels_last)
    assert native.is_plain(x, weight, None, 1, (0, 0)) == (not wide and kept)
    assert native.is_plain(last, weight, None, 1, (0, 0)) == kept
    assert native.is_plain(last, weight.requires_grad_(), None, 1, (0, 0)) == (not wide and kept)


@pytest.mark.parametrize("dtype, own", [(torch.float32, True), (torch.bfloat16, False)])
def test_a_1x1_kernel_of_many_channels_is_ours_by_the_cpus_tiles(monkeypatch, dtype, own: bool) -> None:
    monkeypatch.setattr(native, "_WIDE", True)
    monkeypatch.setattr(native, "_TILES", True)
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    x = torch.empty(2, 256, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    few = x[:, :64].contiguous(memory_format=torch.channels_last)
    assert native.is_plain(x, torch.empty(256, 256, 1, 1, dtype=dtype), None, 1, (0, 0)) != own
    assert native.is_plain(few, torch.empty(64, 64, 1, 1, dtype=dtype), None, 1, (0, 0))
