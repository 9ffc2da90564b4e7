"""Shared by the launches of Triton kernels: dtypes, the architecture, the current device."""

from __future__ import annotations

import contextlib

import torch
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def architecture(device: torch.device) -> str:
    """The name of a GPU's architecture, ``sm_90``, ``gfx942`` ...; the interpreter counts as ``sm_90``."""
    if device.type == "cpu":
        return "sm_90"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one, on which kernels are launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
