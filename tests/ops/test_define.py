"""Ops as ``define`` registers them, beside twins: ``torch.library.custom_op`` of the same functions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqfast.functional import masked_conv2d, quantize
from vqfast.ops import define
from vqfast.ops.masked_conv import op as conv
from vqfast.ops.residual import op as residual

GEOMETRY = 5, [1, 1], [1, 1]
CASES = {
    "masked_conv2d": (conv, lambda x: (x, x[..., 1:], x[:, 0, 0, 0], None, None, *GEOMETRY, "relu")),
    "gate": (conv, lambda x: (x, None)),
    "quantize": (residual, lambda x: (x, x[:, :, 0, 0], 1, True)),
    "quantize in stages": (residual, lambda x: (x, x[:, :, 0].mT, 1, True)),
}


def inputs(name: str, needs_grad: bool = False) -> tuple:
    x = torch.randn(4, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    arguments = CASES[name][1](x)
    return tuple(
        value.clone().requires_grad_(needs_grad) if isinstance(value, Tensor) else value
        for value in arguments
    )


def results(call, arguments: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of those that have one."""
    outputs = call(*arguments)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    wanted = [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]
    loss = sum(value.square().sum() for value in outputs if value.requires_grad and value.numel())
    return outputs, list(torch.autograd.grad(loss, wanted)) if wanted else []


@pytest.fixture(scope="module", params=CASES)
def twins(request) -> tuple:
    """Name, op, and a ``custom_op`` with the op's function, its fake and its gradient."""
    module, _ = CASES[request.param]
    name = request.param.split()[0]
    op = getattr(module, name)
    twin = torch.library.custom_op(f"vqfast_test::{name}", define._FUNCTIONS[op], mutates_args=())
    setup, backward = (
        (module._setup_gate, module._gate_backward)
        if request.param == "gate"
        else (module._setup_context, module._backward)
    )
    twin.register_autograd(backward, setup_context=setup)
    return request.param, op, twin


@pytest.mark.parametrize("needs_grad", [False, True])
def test_outputs_and_gradients_are_those_of_a_custom_op(twins, needs_grad: bool) -> None:
    name, *calls = twins
    (outputs, grads), (other_outputs, other_grads) = (
        results(call, inputs(name, needs_grad)) for call in calls
    )
    torch.testing.assert_close(outputs, other_outputs, rtol=0, atol=0)
    torch.testing.assert_close(grads, other_grads, rtol=0, atol=0)
    for output, other in zip(outputs, other_outputs, strict=True):
        assert output.requires_grad == other.requires_grad
        assert output._is_view() == other._is_view()
        assert output.stride() == other.stride()
    if needs_grad:
        names = [value.grad_fn.name().replace("_test", "") for value in (outputs[0], other_outputs[0])]
        assert names[0] == names[1]


def test_gradient_only_of_what_asks_for_it_and_none_when_it_is_off() -> None:
    x, weight, bias, *rest = inputs("masked_conv2d")
    out, _ = conv.masked_conv2d(x, weight, bias.requires_grad_(), *rest)
    assert [t is not None for t in torch.autograd.grad(out.sum(), [bias])] == [True]
    with torch.no_grad():
        assert not conv.masked_conv2d(x, weight, bias, *rest)[0].requires_grad
    with torch.inference_mode():
        assert conv.masked_conv2d(x, weight, bias, *rest)[0].is_inference()


def test_gradients_twice_by_one_graph() -> None:
    arguments = inputs("quantize", needs_grad=True)
    loss = residual.quantize(*arguments)[2]
    first, second = (torch.autograd.grad(loss, arguments[1], retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *second)


def step(needs_grad: bool) -> None:
    x, weight = torch.randn(1, 2, 3, 3, requires_grad=needs_grad), torch.randn(2, 2, 3, 3)
    out = masked_conv2d(x, weight).square().sum() + quantize(x, torch.randn(4, 2)).commitment_loss
    if needs_grad:
        out.backward()


@pytest.mark.parametrize("needs_grad", [False, True])
def test_dispatch_mode_sees_every_op(needs_grad: bool) -> None:
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    with Record():
        step(needs_grad)
    ops = {conv.masked_conv2d, residual.quantize}
    backward = {conv.masked_conv2d_backward, residual.quantize_backward}
    assert ops <= set(seen)
    assert backward & set(seen) == (backward if needs_grad else set())
    assert not any("vqfast_native" in str(func) for func in seen)


def test_function_mode_sees_the_op_once() -> None:
    seen = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    with Record():
        step(False)
    assert seen.count(conv.masked_conv2d) == seen.count(residual.quantize) == 1


def test_profiler_shows_the_op_and_its_gradient() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(True)
    shown = {event.key for event in profile.key_averages()}
    assert {
        "vqfast::masked_conv2d",
        "vqfast::masked_conv2d_backward",
        "GeneratedBackwardFor_vqfast_masked_conv2d_defaultBackward",
    } <= shown


@pytest.mark.parametrize("needs_grad", [False, True])
def test_subclass_comes_out_as_it_went_in(needs_grad: bool) -> None:
    x, weight, *rest = inputs("masked_conv2d", needs_grad)
    pair = TwoTensor(x.detach(), 2 * x.detach()).requires_grad_(needs_grad)
    out, _ = conv.masked_conv2d(pair, weight, *rest)
    assert type(out) is TwoTensor
    assert torch.equal(out.b, conv.masked_conv2d(2 * x, weight, *rest)[0])
    if needs_grad:
        assert type(torch.autograd.grad(out.sum(), pair)[0]) is TwoTensor


@pytest.mark.parametrize("needs_grad", [False, True])
def test_fake_and_meta_tensors_compute_nothing(twins, needs_grad: bool) -> None:
    name, op, _ = twins
    arguments = inputs(name, needs_grad)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in arguments]
        outputs, grads = results(op, tuple(fake))
    want, want_grads = results(op, arguments)
    for got, real in zip(outputs + grads, want + want_grads, strict=True):
        assert (type(got).__name__, got.shape, got.dtype) == ("FakeTensor", real.shape, real.dtype)
    meta = [value.to("meta") if isinstance(value, Tensor) else value for value in arguments]
    assert all(value.is_meta for value in results(op, tuple(meta))[0])


def test_vmap_takes_samples_one_by_one() -> None:
    x, weight, *rest = inputs("masked_conv2d")
    out = torch.vmap(lambda one: conv.masked_conv2d(one, weight, *rest)[0])(x[:, None])
    torch.testing.assert_close(out[:, 0], conv.masked_conv2d(x, weight, *rest)[0])


def test_compiler_and_export_keep_one_op() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return masked_conv2d(x, x, activation="relu")

    x = torch.randn(3, 3, 3, 3)
    graph = torch.export.export(Model(), (x,)).graph
    assert conv.masked_conv2d in {node.target for node in graph.nodes}
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), Model()(x))


@pytest.mark.slow
def test_first_call_does_not_import_the_compiler() -> None:
    """It takes a second; ``torch.library.custom_op`` does it."""
    code = (
        "import sys, torch; from vqfast.functional import quantize;"
        "quantize(torch.ones(2, 3), torch.ones(4, 3)); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
