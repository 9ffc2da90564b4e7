from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vqfast import functional, ops
from vqfast.ops import modules, registry

CALLS = {
    "nearest": lambda dtype: functional.nearest_code(torch.zeros(2, 3, dtype=dtype), torch.zeros(4, 3)),
    "residual": lambda dtype: functional.quantize(torch.zeros(2, 3, dtype=dtype), torch.zeros(4, 3)),
    "masked_conv": lambda dtype: functional.masked_conv2d(
        torch.zeros(1, 1, 3, 3, dtype=dtype), torch.zeros(1, 1, 3, 3, dtype=dtype)
    ),
}
REFUSALS = {
    (op, name): reason
    for op in CALLS
    for name in registry.BACKENDS
    if (reason := registry.refusal(op, name, torch.zeros(1)))
}


@pytest.fixture
def fake_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native backend of ``nearest`` that answers 7 for float32 on a CPU."""
    module = ModuleType("vqfast.ops.nearest.native")
    module.nearest = lambda x, codebook, lengths: torch.full(x.shape[:-1], 7)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    support = registry.Support(frozenset({torch.float32}), frozenset({"cpu"}))
    monkeypatch.setitem(registry.TABLE["nearest"], "native", support)
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)


def test_table_lists_every_op_folder_and_only_backends_that_have_a_file() -> None:
    folders = {path.parent.name for path in Path(ops.__file__).parent.glob("*/op.py")}
    assert set(registry.TABLE) - {"sampler"} == folders == set(CALLS)
    for op, supports in registry.TABLE.items():
        assert "reference" in supports
        assert list(supports) == [name for name in registry.BACKENDS if name in supports]
        for name, support in supports.items():
            assert modules.module(op, name).__name__.endswith(f".{name}")
            assert not support.probed or callable(modules.module(op, "probe").check)


def test_preferred_backend_is_picked(fake_native: None) -> None:
    assert CALLS["nearest"](torch.float32).tolist() == [7, 7]


def test_backend_that_refuses_is_passed_over_when_none_was_asked_for(fake_native: None) -> None:
    assert CALLS["nearest"](torch.float64).tolist() == [0, 0]


def test_environment_forces_a_backend_over_the_preferred_one(
    fake_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    assert CALLS["nearest"](torch.float32).tolist() == [0, 0]


def test_forced_backend_does_not_fall_back_on_a_dtype_it_refuses(
    fake_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "native")
    with pytest.raises(RuntimeError, match=r"native nearest takes torch.float32, not torch.float64"):
        CALLS["nearest"](torch.float64)


@pytest.mark.parametrize("op, name", REFUSALS)
def test_forced_backend_that_cannot_run_is_an_error_with_the_reason(
    op: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", name)
    with pytest.raises(RuntimeError) as error:
        CALLS[op](torch.float32)
    assert str(error.value) == REFUSALS[op, name]
    assert op in str(error.value)
    assert name in str(error.value)


def test_triton_is_refused_on_a_cpu_tensor() -> None:
    assert "triton" in REFUSALS["nearest", "triton"]


def test_unknown_backend_is_an_error_that_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match="'fastest'; want 'native', 'triton', 'torch' or 'reference'"):
        CALLS["nearest"](torch.float32)


def test_empty_environment_variable_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "")
    assert registry.forced_backend() is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("op", registry.TABLE)
def test_wrong_dtype_is_refused_by_every_backend(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    with pytest.raises(RuntimeError, match=f"reference {op} takes .*not {dtype}"):
        registry.backend(op, torch.zeros(1).to(dtype))


def test_backend_that_says_it_is_unavailable_is_refused_with_its_reason(
    fake_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = registry.Support(registry.FLOATS, unavailable=lambda: "no compiler here")
    monkeypatch.setitem(registry.TABLE["nearest"], "native", support)
    assert (
        registry.refusal("nearest", "native", torch.zeros(1))
        == "native nearest can't run here: no compiler here"
    )
    assert CALLS["nearest"](torch.float32).tolist() == [0, 0]


def test_backend_without_a_file_is_refused_with_those_that_there_are() -> None:
    expected = "nearest has no torch backend; it has native, triton, reference"
    assert registry.refusal("nearest", "torch", torch.zeros(1)) == expected


def test_name_that_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    assert registry.backend("sampler", torch.zeros(1)).__name__.endswith("executors.reference")
    assert registry.backend("sampler", torch.zeros(1), name="torch").__name__.endswith("executors.torch")
