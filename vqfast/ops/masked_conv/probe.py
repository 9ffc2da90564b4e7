"""Masked convolutions of either memory format, with a mask and as a stack."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError where ``module`` differs from ``reference`` in float64."""
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
            for given in arguments:
                doubles = (t.double() if isinstance(t, Tensor) else t for t in given)
                got, want = getattr(module, name)(*given), getattr(reference, name)(*doubles)
                for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
                    size = b.abs().max().item() if b.numel() else 0
                    torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-2 * size)  # TF32, bfloat16
