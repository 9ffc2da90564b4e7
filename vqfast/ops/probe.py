"""A kernel's first use on a device model that no record vouches for: compare it with the reference, once."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vqfast.ops import records

_verdicts: dict[tuple, str | None] = {}  # None: the kernel may run


def _rows_and_codes(device: torch.device, dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor]:
    """Rows and codes with an offset, ties, and codes that lie close together: where a kernel may go wrong."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(70, channels, generator=generator).round(decimals=1) + 3
    rows = torch.cat([torch.randn(200, channels, generator=generator) + 3, codes, codes.roll(1, 0) + 0.01])
    codes[40:] = codes[:30]
    return rows.to(device, dtype), codes.to(device, dtype)


def _check_nearest(module: ModuleType, reference: ModuleType, *where) -> None:
    rows, codes = _rows_and_codes(*where)
    got, want = (each.nearest(rows, codes) for each in (module, reference))
    best, chosen = ((rows.double() - codes.double()[index]).square().sum(-1) for index in (want, got))
    if not (got <= want).logical_or(chosen > best).all() or (chosen > best * (1 + 1e-6)).any():
        raise AssertionError("wrong codes")


def _check_quantize(module: ModuleType, reference: ModuleType, *where) -> None:
    rows, codes = _rows_and_codes(*where)
    _check_step(rows, codes, *((each.quantize, each.quantize_backward) for each in (module, reference)))


def _check_residual(module: ModuleType, reference: ModuleType, *where) -> None:
    rows, codes = _rows_and_codes(*where)
    books = torch.stack([codes, (codes - 3) / 4])
    steps = ((each.residual_quantize, each.residual_backward) for each in (module, reference))
    _check_step(rows, books, *steps)


def _check_step(rows: Tensor, codes: Tensor, *steps: tuple[Callable, Callable]) -> None:
    """Compares two pairs of forward and backward."""
    runs = []
    for forward, backward in steps:
        out = forward(rows, codes, 1, True)
        one = torch.ones_like(out[2])
        runs.append((*out, *backward(rows, one, one, rows, codes, out[1], 1)))
    loose = 2e-2 if rows.dtype in (torch.bfloat16, torch.float16) else 1e-3
    for got, want in zip(*runs, strict=True):
        torch.testing.assert_close(got, want, rtol=loose, atol=loose)


def _check_masked_conv(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Kernels of either memory format, a mask and a stack; the reference computes in float64."""
    generator = torch.Generator().manual_seed(0)
    wide = 2 * channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    bias, sample = draw(wide), draw(2, wide, 1, 1)
    for memory_format, shape, kernel, taps, anchor in (
        (torch.contiguous_format, (16, 16), (3, 3), 5, [1, 1]),
        (torch.channels_last, (9, 7), (2, 3), 6, [2, 1]),
    ):
        x, wide_grid, grid = (
            draw(2, size, *shape).contiguous(memory_format=memory_format)
            for size in (channels, wide, channels)
        )
        weight = draw(wide, channels, *kernel) / (taps * channels) ** 0.5
        geometry = taps, anchor, [1, 1]
        calls: dict[str, list[tuple[Any, ...]]] = {
            "masked_conv2d": [
                (x, weight, bias, sample, grid, *geometry, "gate"),
                (x, weight, None, wide_grid, wide_grid, *geometry, "relu"),
            ],
            "masked_conv2d_backward": [(wide_grid, x, weight, *geometry)],
            "gate": [(wide_grid, sample)],
            "gate_backward": [(x, wide_grid, wide_grid)],
        }
        for name, arguments in calls.items():
            for tensors in arguments:
                doubles = (t.double() if isinstance(t, Tensor) else t for t in tensors)
                got, want = getattr(module, name)(*tensors), getattr(reference, name)(*doubles)
                for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
                    size = b.abs().max().item() if b.numel() else 0
                    torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-2 * size)  # TF32, bfloat16


_CHECKS: dict[str, Callable[[ModuleType, ModuleType, torch.device, torch.dtype, int], None]] = {
    "nearest": _check_nearest,
    "quantize": _check_quantize,
    "residual": _check_residual,
    "masked_conv": _check_masked_conv,
}


def failure(op: str, backend: str, tensor: Tensor, channels: int) -> str | None:
    """Why ``backend``'s ``op`` isn't to be trusted on the device of ``tensor``; ``None``: it is.

    Runs once a process for each dtype and power of two of ``channels`` (kernels are compiled for ranges of
    them); warns when it finds something. Under CUDA graph capture nothing can be compared: ``None``.
    """
    device = tensor.device
    if device.type != "cuda" or records.passed(op, backend, torch.cuda.get_device_name(device)):
        return None
    return verdict(op, backend, device, tensor.dtype, channels)


def verdict(op: str, backend: str, device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """``failure``, for any device."""
    width = min(512, 1 << max(0, channels - 1).bit_length())

    def check() -> None:
        module, reference = (
            importlib.import_module(f"vqfast.ops.{op}.{name}") for name in (backend, "reference")
        )
        _CHECKS[op](module, reference, device, dtype, width)

    return judge(f"{backend} {op}", device, (dtype, width), check)


def judge(what: str, device: torch.device, variant: tuple, check: Callable[[], None]) -> str | None:
    """Why ``what`` isn't to be trusted on ``device``: what ``check`` raises, once a process and variant."""
    key = (what, device, *variant)
    if key not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        _verdicts[key] = None  # the probe's own calls
        try:
            with torch.no_grad():
                check()
        except Exception as error:  # whatever a compiler may raise: the fallback is right all the same
            reason = f"{what} failed its probe on {device}: {type(error).__name__}: {error}"
            warnings.warn(f"{reason}; falling back", RuntimeWarning, stacklevel=5)
            _verdicts[key] = reason
    return _verdicts[key]
