"""Which backend runs an op: one table, asked by one function.

A backend of an op is a module ``vqfast.ops.<op>.<backend>`` with the functions of the op's ``reference.py``.
To add one: write the file, add its line to ``TABLE``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import torch

from vqfast.ops import library, probe, records

BACKENDS = ("cuda", "native", "triton", "reference")  # the order of preference


class NoBackendError(RuntimeError):
    """No backend, or not the one that was asked for, can run an op."""


@dataclass(frozen=True)
class Support:
    """What one backend of one op can run.

    ``devices=None`` means every device. ``unavailable`` says why it can't run here; it is asked last.
    ``probed``: its first use on a device model without a record is compared with the reference, see
    ``probe.py``. ``recorded``: without a record it doesn't run, unless it is asked for.
    """

    dtypes: frozenset[torch.dtype]
    devices: frozenset[str] | None = None
    unavailable: Callable[[], str | None] = lambda: None
    probed: bool = False
    recorded: bool = False


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _no_triton() -> str | None:
    return None if find_spec("triton") else "triton is not installed"


FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
NATIVE = Support(FLOATS, frozenset({"cpu"}), library.unavailable)
TRITON = Support(FLOATS, frozenset({"cuda", "cpu"} if interpreted() else {"cuda"}), _no_triton, probed=True)

TABLE: dict[str, dict[str, Support]] = {
    "nearest": {"native": NATIVE, "triton": TRITON, "reference": Support(FLOATS)},
    "quantize": {"native": NATIVE, "triton": TRITON, "reference": Support(FLOATS)},
    "residual": {"native": NATIVE, "triton": TRITON, "reference": Support(FLOATS)},
    "masked_conv": {"native": NATIVE, "triton": TRITON, "reference": Support(FLOATS)},
}


def refusal(op: str, backend: str, tensor: torch.Tensor) -> str | None:
    """Why ``backend`` can't run ``op`` on ``tensor``; ``None`` when it can."""
    support = TABLE[op].get(backend)
    if support is None:
        return f"{op} has no {backend} backend"
    if support.devices is not None and tensor.device.type not in support.devices:
        return f"{backend} {op} runs on {sorted(support.devices)}, not on {tensor.device.type}"
    if tensor.dtype not in support.dtypes:
        return f"{backend} {op} takes {sorted(map(str, support.dtypes))}, not {tensor.dtype}"
    if (reason := support.unavailable()) is not None:
        return f"{backend} {op} can't run here: {reason}"
    return None


def standing(op: str, backend: str, device: torch.device) -> str:
    """What a record says of a backend that can run on ``device``; nothing where none is wanted."""
    support = TABLE[op][backend]
    if device.type != "cuda" or not (support.probed or support.recorded):
        return ""
    if reason := _unrecorded(op, backend, device):
        return f"{reason}: {'only if asked for' if support.recorded else 'compared with the reference first'}"
    return "a record shows that it passed"


def _unrecorded(op: str, backend: str, device: torch.device) -> str | None:
    """Says so if there is no record of ``backend``'s ``op`` on a device of that model."""
    name = torch.cuda.get_device_name(device)
    return None if records.passed(op, backend, name) else f"no record of {backend} {op} on {name}"


def forced_backend() -> str | None:
    """The backend that ``VQFAST_BACKEND`` asks for, if any.

    Raises:
        ValueError: it names no backend.
    """
    name = os.environ.get("VQFAST_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"VQFAST_BACKEND is {name!r}; want one of {', '.join(BACKENDS)}")
    return name


def backend(op: str, tensor: torch.Tensor, channels: int | None = None) -> ModuleType:
    """The module that runs ``op`` on tensors like ``tensor``, with vectors of ``channels`` channels.

    Raises:
        NoBackendError: the backend that was asked for, or every one, refuses; the message says why.
    """
    forced = forced_backend()
    reasons = []
    for name in (forced,) if forced else BACKENDS:
        reason = refusal(op, name, tensor)
        if reason is None and forced is None and TABLE[op][name].recorded:
            reason = _unrecorded(op, name, tensor.device)
        if reason is None and channels is not None and TABLE[op][name].probed:
            reason = probe.failure(op, name, tensor, channels)
        if reason is None:
            return importlib.import_module(f"vqfast.ops.{op}.{name}")
        reasons.append(reason)
    raise NoBackendError("; ".join(reasons))
