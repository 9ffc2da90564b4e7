from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

from vqfast.functional import masked_conv2d, nearest_code
from vqfast.ops import probe, registry
from vqfast.ops.masked_conv.probe import Part as ConvPart
from vqfast.ops.residual.probe import Part as StagePart
from vqfast.ops.residual.probe import part_of as stage_part_of

CPU = torch.device("cpu")
STAGE = StagePart("quantize", False, (2, 1, 171), 1, False)


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
            lambda op, name, t, channels, part: probe.verdict(op, name, t.device, t.dtype, channels, part()),
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
@pytest.mark.parametrize("op, name, part", [("nearest", "nearest", None), ("residual", "quantize", STAGE)])
def test_right_kernel_is_probed_once_for_each_dtype_and_width(install, op, name, part, dtype) -> None:
    calls = []

    def counted(*args):
        calls.append(args)
        return getattr(reference(op), name)(*args)

    install(op, module_of(op, **{name: counted}))
    for channels in (5, 8, 7):
        assert probe.verdict(op, "native", CPU, dtype, channels, part) is None
    assert len(calls) == 1
    assert probe.verdict(op, "native", CPU, dtype, 9, part) is None
    assert len(calls) == 2


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shape, channel_dim", [((4,), 0), ((9, 4), 1), ((2, 4, 8), 1), ((3, 2, 4, 5, 7), 2)])
@pytest.mark.parametrize("function", ["quantize", "quantize_backward", "residual_codes", "projected_codes"])
def test_a_right_stage_passes_in_every_layout(install, function, shape, channel_dim, dense) -> None:
    z = torch.zeros(shape)
    if function == "projected_codes" and z.ndim != 3:
        return
    install("residual", module_of("residual", **{function: getattr(reference("residual"), function)}))
    for several in (False, True):
        part = stage_part_of(function, several, z, channel_dim)._replace(dense=dense)
        assert probe.verdict("residual", "native", CPU, torch.float32, 4, part) is None


CONV = ("masked_conv2d", "masked_conv2d_backward", "gate", "gate_backward", "embed", "embed_backward")
LAST = torch.channels_last
PARTS = {
    "bare": ConvPart("masked_conv2d", (1, 9, 9), ("", "", ""), 10, (2, 3, 4, 2, 1, 1, 2), layout=LAST),
    "pointwise": ConvPart(
        "masked_conv2d", (2, 16, 1), ("grid", "", "grid"), 8, (1, 1, 1, 0, 0, 1, 1), "relu", LAST
    ),
    "gated": ConvPart("masked_conv2d", given=("grid", "sample", "grid"), activation="gate"),
    "backward": ConvPart("masked_conv2d_backward"),
    "gate": ConvPart("gate", given=("sample",), layout=LAST),
    "gate backward": ConvPart("gate_backward", given=("grid",)),
    "embed": ConvPart("embed"),
    "embed backward": ConvPart("embed_backward"),
}


def conv_with(**wrong) -> ModuleType:
    right = {name: getattr(reference("masked_conv"), name) for name in CONV}
    return module_of("masked_conv", **right | wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_right_convolution_passes(install, part, dtype) -> None:
    install("masked_conv", conv_with())
    assert probe.verdict("masked_conv", "native", CPU, dtype, 5, part) is None


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
    "part, wrong",
    [
        ("bare", sees_its_own_position),
        ("gated", forgets_the_residual),
        ("backward", turned_gradient),
        ("gate", lambda x, extra: reference("masked_conv").gate(x, None)),
        ("gate backward", forgets_extra),
    ],
)
def test_wrong_convolution_is_noticed(install, part, wrong) -> None:
    install("masked_conv", conv_with(**{PARTS[part].function: wrong}))
    with pytest.warns(RuntimeWarning, match="native masked_conv failed"):
        assert "not close" in probe.verdict("masked_conv", "native", CPU, torch.float32, 4, PARTS[part])


def test_masked_convolution_asks_for_its_probe(install) -> None:
    install("masked_conv", conv_with(masked_conv2d=raising))
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3)
    with pytest.warns(RuntimeWarning, match="native masked_conv failed its probe .*falling back"):
        found = masked_conv2d(x, weight)
    want, _ = reference("masked_conv").masked_conv2d(x, weight, None, None, None, 4, [1, 1], [1, 1], "none")
    assert torch.equal(found, want)


def test_wrong_statistics_are_noticed(install) -> None:
    install("residual", module_of("residual", quantize=nan_sums))
    with pytest.warns(RuntimeWarning, match="native residual failed"):
        assert "residual" in probe.verdict("residual", "native", CPU, torch.float32, 4, STAGE)


def test_cpu_tensor_is_not_probed() -> None:
    assert probe.failure("nearest", "triton", torch.zeros(1), 4, lambda: None) is None


@pytest.mark.slow
def test_importing_vqfast_does_not_import_triton() -> None:
    import subprocess

    code = "import sys, vqfast; from vqfast.ops import registry; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
