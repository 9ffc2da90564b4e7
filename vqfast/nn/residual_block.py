"""Convolutions of one to three axes, and the residual block made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def convolutions(ndim: int) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """The convolution of ``ndim`` axes, and the transposed one."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    return conv, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]


class ResidualBlock(nn.Module):
    """ReLU, a 3x3 convolution to ``residual_channels``, ReLU, a 1x1 one back, added to the input."""

    def __init__(
        self, conv: Callable[..., nn.Module], channels: int, residual_channels: int, **factory: Any
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            conv(channels, residual_channels, 3, padding=1, **factory),
            nn.ReLU(),
            conv(residual_channels, channels, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change
