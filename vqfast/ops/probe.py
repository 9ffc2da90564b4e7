"""Compares a kernel with the reference before its first use on a GPU model that no record vouches for.

The comparison is ``check(module, reference, device, dtype, channels)`` in the op's ``probe.py``; it raises an
error that says what is wrong. The inputs that several checks share are made here.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from vqfast.ops import records
from vqfast.ops.modules import module

_verdicts: dict[tuple[Any, ...], str | None] = {}  # None: the kernel may run


def vectors_and_codebook(device: torch.device, dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor]:
    """``(340, D)`` and ``(70, D)``: an offset, ties, close code vectors, where a kernel may go wrong."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(70, channels, generator=generator).round(decimals=1) + 3
    random = torch.randn(200, channels, generator=generator) + 3
    vectors = torch.cat([random, codebook, codebook.roll(1, 0) + 0.01])
    codebook[40:] = codebook[:30]
    return vectors.to(device, dtype), codebook.to(device, dtype)


def failure(op: str, backend: str, tensor: Tensor, channels: int) -> str | None:
    """Why ``backend``'s ``op`` isn't to be trusted on the device of ``tensor``; ``None``: it is.

    Runs once a process for each dtype and range of ``channels`` for which the same kernels are compiled: up
    to a power of two, multiples of 16 apart; warns when it finds something.

    Raises:
        RuntimeError: it hasn't run yet, and can't now, because a CUDA graph is being captured.
    """
    device = tensor.device
    if device.type != "cuda" or records.passed(op, backend, torch.cuda.get_device_name(device)):
        return None
    return verdict(op, backend, device, tensor.dtype, channels)


def verdict(op: str, backend: str, device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """``failure``, for any device."""
    width = min(512, 1 << max(0, channels - 1).bit_length())
    if channels % 16 and width % 16 == 0:  # Triton compiles multiples of 16 apart
        width -= 1
    key = (op, backend, device, dtype, width)
    if key not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{backend} {op} of {dtype} with {channels} channels is new on {device}. Its first call "
                "is compared with the reference, which no CUDA graph can capture: call it before the capture"
            )
        _verdicts[key] = None  # the check's own calls are not probed
        try:
            with torch.no_grad():
                module(op, "probe").check(module(op, backend), module(op, "reference"), device, dtype, width)
        except Exception as error:  # whatever a compiler may raise: the next backend gives the right result
            reason = f"{backend} {op} failed its probe on {device}: {type(error).__name__}: {error}"
            warnings.warn(f"{reason}; falling back", RuntimeWarning, stacklevel=4)
            _verdicts[key] = reason
    return _verdicts[key]
