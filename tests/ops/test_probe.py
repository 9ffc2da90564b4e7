from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

from vqfast.functional import masked_conv2d, nearest_code
from vqfast.ops import probe, registry

CPU = torch.device("cpu")


def module_of(op: str, **functions) -> ModuleType:
    module = ModuleType(f"vqfast.ops.{op}.native")
    vars(module).update(functions)
    return module


def reference(op: str) -> ModuleType:
    return importlib.import_module(f"vqfast.ops.{op}.reference")


def wrong(x, codebook):
    return (reference("nearest").nearest(x, codebook) + 1) % codebook.shape[-2]


def not_the_lowest(x, codebook):
    """Right but for ties."""
    return codebook.shape[-2] - 1 - reference("nearest").nearest(x, codebook.flip(-2))


def raising(*_):
    raise RuntimeError("out of resource: shared memory")


def nan_sums(*args):
    *head, sums = reference("residual").quantize(*args)
    return (*head, sums * torch.nan)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Puts a module in the place of ``op``'s native backend, probed as if on an unknown GPU."""

    def put(op: str, module: ModuleType) -> None:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(registry.TABLE[op], "native", registry.Support(registry.FLOATS, probed=True))
        monkeypatch.setattr(
            probe,
            "failure",
            lambda op, name, t, channels: probe.verdict(op, name, t.device, t.dtype, channels),
        )

    monkeypatch.setattr(probe, "_verdicts", {})
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    return put


@pytest.mark.parametrize("kernel", [wrong, not_the_lowest, raising])
def test_bad_kernel_falls_back_with_one_warning(install, kernel) -> None:
    install("nearest", module_of("nearest", nearest=kernel))
    x, codebook = torch.randn(30, 4), torch.randn(9, 4)
    with pytest.warns(RuntimeWarning, match="native nearest failed its probe .*falling back") as warned:
        found = nearest_code(x, codebook)
    assert len(warned) == 1
    assert torch.equal(found, reference("nearest").nearest(x, codebook))
    assert torch.equal(nearest_code(x, codebook), found)  # a second warning would be an error


def test_bad_kernel_that_was_asked_for_is_an_error_with_the_reason(install, monkeypatch) -> None:
    install("nearest", module_of("nearest", nearest=raising))
    monkeypatch.setenv("VQFAST_BACKEND", "native")
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="out of resource"):
        nearest_code(torch.randn(3, 4), torch.randn(9, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op, name, calls_each", [("nearest", "nearest", 1), ("residual", "quantize", 2)])
def test_right_kernel_is_probed_once_for_each_dtype_and_width(install, op, name, calls_each, dtype) -> None:
    calls = []

    def counted(*args):
        calls.append(args)
        return getattr(reference(op), name)(*args)

    right = {"quantize_backward": reference("residual").quantize_backward, name: counted}
    install(op, module_of(op, **right))
    for channels in (5, 8, 7):
        assert probe.verdict(op, "native", CPU, dtype, channels) is None
    assert len(calls) == calls_each
    assert probe.verdict(op, "native", CPU, dtype, 9) is None
    assert len(calls) == 2 * calls_each


CONV = ("masked_conv2d", "masked_conv2d_backward", "gate", "gate_backward")


def conv_with(**wrong) -> ModuleType:
    right = {name: getattr(reference("masked_conv"), name) for name in CONV}
    return module_of("masked_conv", **right | wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_right_convolution_passes(install, dtype) -> None:
    install("masked_conv", conv_with())
    assert probe.verdict("masked_conv", "native", CPU, dtype, 5) is None


def sees_its_own_position(x, weight, bias, extra, residual, taps, *rest):
    return reference("masked_conv").masked_conv2d(x, weight, bias, extra, residual, taps + 1, *rest)


def forgets_the_residual(x, weight, bias, extra, residual, *rest):
    return reference("masked_conv").masked_conv2d(x, weight, bias, extra, residual * 0, *rest)


def turned_gradient(*args):
    grad_x, grad_weight, grad_bias = reference("masked_conv").masked_conv2d_backward(*args)
    return grad_x, grad_weight.flip(3), grad_bias


def forgets_extra(grad, x, extra):
    return reference("masked_conv").gate_backward(grad, x, None)


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("masked_conv2d", sees_its_own_position),
        ("masked_conv2d", forgets_the_residual),
        ("masked_conv2d_backward", turned_gradient),
        ("gate", lambda x, extra: reference("masked_conv").gate(x, None)),
        ("gate_backward", forgets_extra),
    ],
)
def test_wrong_convolution_is_noticed(install, name, wrong) -> None:
    install("masked_conv", conv_with(**{name: wrong}))
    with pytest.warns(RuntimeWarning, match="native masked_conv failed"):
        assert "not close" in probe.verdict("masked_conv", "native", CPU, torch.float32, 4)


def test_masked_convolution_asks_for_its_probe(install) -> None:
    install("masked_conv", conv_with(masked_conv2d=raising))
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3)
    with pytest.warns(RuntimeWarning, match="native masked_conv failed its probe .*falling back"):
        found = masked_conv2d(x, weight)
    want, _ = reference("masked_conv").masked_conv2d(x, weight, None, None, None, 4, [1, 1], [1, 1], "none")
    assert torch.equal(found, want)


def test_wrong_statistics_are_noticed(install) -> None:
    backward = reference("residual").quantize_backward
    install("residual", module_of("residual", quantize=nan_sums, quantize_backward=backward))
    with pytest.warns(RuntimeWarning, match="native residual failed"):
        assert "residual" in probe.verdict("residual", "native", CPU, torch.float32, 4)


def test_cpu_tensor_is_not_probed() -> None:
    assert probe.failure("nearest", "triton", torch.zeros(1), 4) is None


@pytest.mark.slow
def test_importing_vqfast_does_not_import_triton() -> None:
    import subprocess

    code = "import sys, vqfast; from vqfast.ops import registry; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
