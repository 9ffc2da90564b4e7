"""Compares a kernel with the reference before its first use on a GPU model that no record vouches for.

The comparison is ``check(module, reference, device, dtype, channels, part)`` in the op's ``probe.py``; it
raises an error that says what is wrong. ``part`` says what is about to be called, so that a probe compiles
what that call needs and nothing else. The inputs that several checks share are made here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
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


def assert_close(got: Tensor, wanted: Tensor, relative: float, absolute: float) -> None:
    """That of ``torch.testing``, whose first use imports other things for a third of a second."""
    if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
        raise AssertionError(f"{got.dtype} {tuple(got.shape)} isn't {wanted.dtype} {tuple(wanted.shape)}")
    different = int((~torch.isclose(got, wanted, relative, absolute)).sum())
    if different:
        raise AssertionError(f"{different} of {wanted.numel()} numbers are not close")


def width_of(channels: int, apart: int = 1) -> int:
    """The number of channels that stands for all for which the same kernels are compiled.

    Triton compiles multiples of 16 apart; other numbers are ``apart`` below a power of two.
    """
    width = min(512, 1 << max(0, channels - 1).bit_length())
    return width - apart if channels % 16 and width % 16 == 0 else width


def failure(op: str, backend: str, tensor: Tensor, channels: int, part: Callable[[], Hashable]) -> str | None:
    """Why ``backend``'s ``op`` isn't to be trusted on the device of ``tensor``; ``None``: it is.

    Runs once a process for each dtype, ``part()`` of the op, and range of ``channels`` for which the same
    kernels are compiled: up to a power of two, multiples of 16 apart; warns when it finds something.

    Raises:
        RuntimeError: it hasn't run yet, and can't now, because a CUDA graph is being captured.
    """
    device = tensor.device
    if device.type != "cuda" or records.passed(op, backend, torch.cuda.get_device_name(device)):
        return None
    return verdict(op, backend, device, tensor.dtype, channels, part())


def verdict(
    op: str, backend: str, device: torch.device, dtype: torch.dtype, channels: int, part: Hashable
) -> str | None:
    """``failure``, for any device."""
    width = width_of(channels)
    key = (op, backend, device, dtype, width, part)
    if key not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{backend} {op} of {dtype} with {channels} channels is new on {device}. Its first call "
                "is compared with the reference, which no CUDA graph can capture: call it before the capture"
            )
        _verdicts[key] = None  # the check's own calls are not probed
        try:
            with torch.no_grad():
                kernels, reference = module(op, backend), module(op, "reference")
                module(op, "probe").check(kernels, reference, device, dtype, width, part)
        except Exception as error:  # whatever a compiler may raise: the next backend gives the right result
            reason = f"{backend} {op} failed its probe on {device}: {type(error).__name__}: {error}"
            warnings.warn(f"{reason}; falling back", RuntimeWarning, stacklevel=4)
            _verdicts[key] = reason
    return _verdicts[key]
