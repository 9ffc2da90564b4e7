"""Which backend runs an op or the sampler: one table, asked by one function.

A backend of an op is a module ``vqfast.ops.<op>.<backend>`` with the functions of the op's ``reference.py``.
The sampler's backends are the modules of ``vqfast.sampling.executors``. To add one: write the file, add its
entry to ``TABLE``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType

import torch

from vqfast.ops import library, probe, records
from vqfast.ops.modules import module

BACKENDS = ("native", "triton", "torch", "reference")  # the order of preference


class NoBackendError(RuntimeError):
    """No backend, or not the one that was asked for, can run an op."""


@dataclass(frozen=True)
class Support:
    """What one backend of one op can run.

    ``devices=None`` means every device. ``unavailable`` returns the reason why the backend can't run on this
    machine, if there is one; it is called last. ``probed``: on a GPU model that no record vouches for, the
    backend is compared with the reference before its first use, see ``probe.py``. ``flawed`` returns what is
    wrong with a device, if anything.
    """

    dtypes: frozenset[torch.dtype]
    devices: frozenset[str] | None = None
    unavailable: Callable[[], str | None] = lambda: None
    probed: bool = False
    flawed: Callable[[torch.device], str | None] = lambda device: None


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _no_triton() -> str | None:
    return None if find_spec("triton") else "triton is not installed"


def _flushes(device: torch.device) -> str | None:
    """The search's bound counts on fp16 numbers below 2^-14 in matrix products."""
    if device.type != "cuda" or not torch.version.hip:
        return None
    name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return f"{name} takes small fp16 numbers for zero" if name == "gfx90a" else None


FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
NATIVE = Support(FLOATS, frozenset({"cpu"}), library.unavailable)
TRITON = Support(FLOATS, frozenset({"cuda", "cpu"} if interpreted() else {"cuda"}), _no_triton, probed=True)
SEARCH = replace(TRITON, flawed=_flushes)
ANYWHERE = Support(FLOATS)

TABLE: dict[str, dict[str, Support]] = {  # each row in the order of preference
    "nearest": {"native": NATIVE, "triton": SEARCH, "reference": ANYWHERE},
    "residual": {"native": NATIVE, "triton": SEARCH, "reference": ANYWHERE},
    "masked_conv": {"native": NATIVE, "triton": TRITON, "reference": ANYWHERE},
    "sampler": {"native": NATIVE, "triton": TRITON, "torch": ANYWHERE, "reference": ANYWHERE},
}


def refusal(op: str, backend: str, tensor: torch.Tensor) -> str | None:
    """Why ``backend`` can't run ``op`` on ``tensor``; ``None`` when it can."""
    support = TABLE[op].get(backend)
    if support is None:
        return f"{op} has no {backend} backend; it has {', '.join(TABLE[op])}"
    if support.devices is not None and tensor.device.type not in support.devices:
        return f"{backend} {op} runs on {', '.join(sorted(support.devices))}, not on {tensor.device.type}"
    if tensor.dtype not in support.dtypes:
        return f"{backend} {op} takes {', '.join(sorted(map(str, support.dtypes)))}, not {tensor.dtype}"
    if (reason := support.flawed(tensor.device) or support.unavailable()) is not None:
        return f"{backend} {op} can't run here: {reason}"
    return None


def record_of(op: str, backend: str, device: torch.device) -> str:
    """What the shipped records say of ``backend``'s ``op`` on ``device``; empty where no record is needed."""
    if device.type != "cuda" or not TABLE[op][backend].probed:
        return ""
    name = torch.cuda.get_device_name(device)
    if records.passed(op, backend, name):
        return "a record shows that it passed"
    return f"no record of {backend} {op} on {name}: compared with the reference first"


def forced_backend() -> str | None:
    """The backend that ``VQFAST_BACKEND`` asks for, if any.

    Raises:
        ValueError: it names no backend.
    """
    name = os.environ.get("VQFAST_BACKEND") or None
    if name is not None and name not in BACKENDS:
        *others, last = map(repr, BACKENDS)
        raise ValueError(f"VQFAST_BACKEND is {name!r}; want {', '.join(others)} or {last}")
    return name


def backend(
    op: str,
    tensor: torch.Tensor,
    channels: int = 1,
    name: str | None = None,
    part: Callable[[], Hashable] = lambda: None,
) -> ModuleType:
    """The module that runs ``op`` on tensors like ``tensor``, with vectors of ``channels`` channels.

    It is the backend ``name``, else the one that ``VQFAST_BACKEND`` names, else the first that can run.
    ``part()`` is what the op's ``probe.py`` has to know of the call.

    Raises:
        NoBackendError: the backend that was asked for, or every one, refuses; the message says why.
    """
    reasons = []
    for each in _asked(op, name):
        reason = refusal(op, each, tensor)
        if reason is None and TABLE[op][each].probed:
            reason = probe.failure(op, each, tensor, channels, part)
        if reason is None:
            return module(op, each)
        reasons.append(reason)
    raise NoBackendError("; ".join(reasons))


def first(op: str, tensor: torch.Tensor, name: str | None = None) -> str:
    """The backend that ``backend`` chooses unless it fails a comparison; no kernel is compared here.

    Raises:
        NoBackendError: as ``backend`` does.
    """
    reasons = []
    for each in _asked(op, name):
        reason = refusal(op, each, tensor)
        if reason is None:
            return each
        reasons.append(reason)
    raise NoBackendError("; ".join(reasons))


def _asked(op: str, name: str | None) -> tuple[str, ...]:
    asked = name or forced_backend()
    return (asked,) if asked else tuple(TABLE[op])
