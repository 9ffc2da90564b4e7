"""A test that asks for ``backend`` runs once for each backend of its module's ``OP`` that can run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from vqfast.ops import registry


@pytest.fixture(autouse=True)
def interpreter_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds, and multiplies its bits.

    It warns of a sum that is too large for float32, where a GPU goes on with infinity.
    """
    if not registry.interpreted():
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cut_off = interpreter._convert_float

    def convert(data, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut_off(data, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    builder = interpreter.InterpreterBuilder
    dot_of_bits = builder.create_dot

    def dot(self, a, b, *rest):
        a, b = (self.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot_of_bits(self, a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", dot)
    with np.errstate(over="ignore"):
        yield


def device_of(op: str, backend: str) -> str | None:
    """Where a backend is tested: on the CPU if it can run there, else on a GPU if there is one."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = (d for d in devices if registry.refusal(op, backend, torch.zeros(1, device=d)) is None)
    return next(found, None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        op = metafunc.module.OP
        here = [(op, name) for name in registry.TABLE[op] if device_of(op, name)]
        metafunc.parametrize("backend", here, indirect=True, ids=[name for _, name in here])


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    op, name = request.param
    monkeypatch.setenv("VQFAST_BACKEND", name)
    device = device_of(op, name)
    with torch.device(device) if device != "cpu" else nullcontext():  # where the test's tensors are made
        yield name


@pytest.fixture
def assert_nearest():
    """Checks indices against squared differences in float64, taken one code at a time.

    A row may choose another than the best code only where their distances differ by less than 1e-6
    relative; with ``exact`` (data whose distances have no rounding) it must be the first of the best.
    """

    def check(indices: Tensor, x: Tensor, codebook: Tensor, exact: bool = False) -> None:
        x, codebook = (t.detach().double().cpu().numpy() for t in (x, codebook))
        indices = indices.cpu()
        differences = (x - codebook[..., k, None, :] for k in range(codebook.shape[-2]))
        distances = np.stack([np.einsum("...d,...d->...", each, each) for each in differences], -1)
        assert indices.dtype == torch.int64
        assert indices.shape == distances.shape[:-1]
        if exact:
            np.testing.assert_array_equal(indices.numpy(), distances.argmin(-1))
        else:
            chosen = np.take_along_axis(distances, indices.numpy()[..., None], -1)[..., 0]
            assert np.count_nonzero(chosen > distances.min(-1) * (1 + 1e-6)) == 0

    return check
