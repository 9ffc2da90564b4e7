from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from vqfast.functional import gate, kernel_shape, masked_conv1d, masked_conv2d, visible_taps
from vqfast.ops.masked_conv import op

OP = "masked_conv"
KINDS = [(stack, mask) for stack in ("full", "vertical", "horizontal") for mask in "AB"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def padded_kernel(weight: Tensor, size: int, stack: str, mask: str) -> Tensor:
    """The ordinary ``size x size`` kernel, in float64, with zeros wherever the masked one sees nothing."""
    kernel, centre = torch.zeros(*weight.shape[:2], size, size, dtype=torch.float64), size // 2
    weight = weight.double()
    if stack == "vertical":
        kernel[:, :, : weight.shape[2]] = weight
    elif stack == "horizontal":
        kernel[:, :, centre : centre + 1, : weight.shape[3]] = weight
    else:
        kernel[:, :, :centre] = weight[:, :, :centre]
        seen = centre + (mask == "B")
        kernel[:, :, centre, :seen] = weight[:, :, centre, :seen]
    return kernel


def truth(x: Tensor, weight: Tensor, bias: Tensor | None, size: int, mask: str, stack: str, dilation: int):
    kernel = padded_kernel(weight, size, stack, mask)
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double(), kernel, bias, padding=size // 2 * dilation, dilation=dilation)


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


def arguments(channels: tuple[int, int], shape: tuple[int, ...], size: int, stack: str, mask: str):
    kernel = kernel_shape(size, mask, stack)
    weight, bias = torch.randn(*channels[::-1], *kernel), torch.randn(channels[1])
    return torch.randn(shape[0], channels[0], *shape[1:]), weight, bias


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


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
}


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


def one_hot(codes: Tensor, weight: Tensor, bias: Tensor | None, *where) -> Tensor:
    x = F.one_hot(codes, weight.shape[1]).movedim(-1, 1).to(weight)
    return op.masked_conv2d(x, weight, bias, None, None, *where, "none")[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 1, 1), (1, 1, 40), (0, 3, 3)])
@pytest.mark.parametrize(
    "stack, mask, dilation", [("full", "A", 1), ("vertical", "B", 2), ("horizontal", "B", 3)]
)
def test_embed_is_the_convolution_of_one_hot_vectors(backend, dtype, shape, stack, mask, dilation) -> None:
    """With channels beside a tile's."""
    taps, anchor = visible_taps(kernel_shape(5, mask, stack), mask, stack)
    for codes, channels in ((6, 4), (3, 33)):
        weight = torch.randn(channels, codes, *kernel_shape(5, mask, stack)).to(dtype).requires_grad_()
        bias = torch.randn(channels).to(dtype).requires_grad_()
        indices, doubles = (
            torch.randint(codes, shape),
            [t.detach().double().requires_grad_() for t in (weight, bias)],
        )
        where = taps, anchor, (dilation, dilation)
        out, want = op.embed(indices, weight, bias, *where), one_hot(indices, *doubles, *where)
        assert out.is_contiguous(memory_format=torch.channels_last)
        grad = torch.randn(want.shape).to(dtype)
        got = [out, *torch.autograd.grad(out, (weight, bias), grad)]
        wanted = [want, *torch.autograd.grad(want, doubles, grad.double())]
        for a, b in zip(got, wanted, strict=True):
            tolerance = TOLERANCE[dtype] * max(1, b.abs().max().item() if b.numel() else 0)
            torch.testing.assert_close(a, b.to(dtype), rtol=TOLERANCE[dtype], atol=tolerance)


def test_embed_without_a_bias_or_visible_taps(backend) -> None:
    weight, codes = torch.randn(3, 4, 3, 3), torch.randint(4, (2, 3, 3))
    where = [1, 1], [1, 1]
    torch.testing.assert_close(
        op.embed(codes, weight, None, 5, *where), one_hot(codes, weight, None, 5, *where)
    )
    assert not op.embed(codes, weight, None, 0, *where).any()
    grads = op.embed_backward(torch.ones(2, 3, 3, 3), codes, weight, 0, *where)
    assert not grads[0].any() and (grads[1] == 18).all()


@pytest.mark.parametrize("bad", [-1, 5])
def test_embed_refuses_indices_out_of_range(backend, bad) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        op.embed(torch.full((1, 2, 2), bad), torch.randn(3, 4, 3, 3), None, 5, [1, 1], [1, 1])


def test_embed_gradcheck_opcheck_and_one_graph(backend) -> None:
    codes, where = torch.randint(4, (2, 3, 4)), (5, [1, 1], [1, 1])
    weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4, 3, 3), (3,)))
    call = lambda weight, bias: op.embed(codes, weight, bias, *where)  # noqa: E731
    assert torch.autograd.gradcheck(call, (weight, bias)) and torch.autograd.gradgradcheck(
        call, (weight, bias)
    )
    torch.library.opcheck(op.embed, (codes, weight, bias, *where))
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(weight, bias), call(weight, bias))
