"""PixelCNN++ in plain PyTorch: three resolutions, and draws from mixtures of logistics.

Source: Salimans et al. 2017, "PixelCNN++" (arXiv 1701.05517).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def concat_elu(x: Tensor) -> Tensor:
    """The ELU of a value and of its negative."""
    return F.elu(torch.cat([x, -x], dim=1))


class Shifted(nn.Module):
    """A convolution that sees the rows above and its own, and of its own row all or the left.

    Args:
        inputs, outputs: channels.
        down: whether it sees all of its own row.
        stride: a convolution's, to a coarser grid.
    """

    def __init__(self, inputs: int, outputs: int, down: bool, stride: int = 1) -> None:
        super().__init__()
        self.pads = (1, 1, 1, 0) if down else (1, 0, 1, 0)
        conv = nn.Conv2d(inputs, outputs, (2, 3) if down else 2, stride)
        self.conv = nn.utils.parametrizations.weight_norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` -> ``(B, outputs, H / stride, W / stride)``."""
        out: Tensor = self.conv(F.pad(x, self.pads))
        return out


class Up(nn.Module):
    """A transposed convolution to twice as many rows and columns, which sees what ``Shifted`` sees."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        conv = nn.ConvTranspose2d(channels, channels, (2, 3) if down else 2, 2, output_padding=1)
        self.conv, self.left = nn.utils.parametrizations.weight_norm(conv), int(down)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, 2 H, 2 W)``."""
        height, width = x.shape[2:]
        out: Tensor = self.conv(x)
        return out[:, :, : 2 * height, self.left : self.left + 2 * width]


class Block(nn.Module):
    """A gated residual block, which also reads ``skip`` channels of another value."""

    def __init__(self, channels: int, down: bool, skip: int = 0) -> None:
        super().__init__()
        self.first = Shifted(2 * channels, channels, down)
        self.skip = nn.Conv2d(2 * skip, channels, 1) if skip else None
        self.second = Shifted(2 * channels, 2 * channels, down)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``x`` plus the block's output."""
        h = self.first(concat_elu(x))
        if self.skip is not None and other is not None:
            h = h + self.skip(concat_elu(other))
        a, b = self.second(concat_elu(h)).chunk(2, dim=1)
        gated: Tensor = a * b.sigmoid()
        return x + gated


def pair(first: nn.ModuleList, second: nn.ModuleList, level: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The blocks of a level in both streams."""
    return cast(nn.ModuleList, first[level]), cast(nn.ModuleList, second[level])


class PlainPixelCNNPP(nn.Module):
    """PixelCNN++ of grey or coloured images.

    Args:
        channels: of every layer.
        layers: blocks of a resolution, in each stream and each half.
        mixtures: M, components.
        colours: 1, or 3 whose means depend on the colours before.
        num_embeddings: K, how many values there are.
    """

    def __init__(
        self, channels: int, layers: int, mixtures: int, colours: int = 1, num_embeddings: int = 256
    ) -> None:
        super().__init__()
        self.layers, self.mixtures, self.colours = layers, mixtures, colours
        self.num_embeddings = num_embeddings
        inputs = colours + 1
        self.above = nn.Conv2d(inputs, channels, (2, 3))
        self.row_above, self.left = nn.Conv2d(inputs, channels, (1, 3)), nn.Conv2d(inputs, channels, (2, 1))

        def blocks(counts: list[int], down: bool, skip: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(Block(channels, down, skip) for _ in range(count)) for count in counts
            )

        falling, rising = [layers] * 3, [layers, layers + 1, layers + 1]
        self.u_falling, self.ul_falling = blocks(falling, True, 0), blocks(falling, False, channels)
        self.u_rising = blocks(rising, True, channels)
        self.ul_rising = blocks(rising, False, 2 * channels)
        self.u_down, self.ul_down = (
            nn.ModuleList(Shifted(channels, channels, down, 2) for _ in range(2)) for down in (True, False)
        )
        self.u_up, self.ul_up = (
            nn.ModuleList(Up(channels, down) for _ in range(2)) for down in (True, False)
        )
        self.head = nn.Conv2d(channels, mixtures * (10 if colours == 3 else 3), 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Parameters ``(B, 3 M, H, W)`` for codes ``(B, H, W)``; of colours with a last axis of 3."""
        values = codes.to(self.head.weight.dtype) * (2 / (self.num_embeddings - 1)) - 1
        values = values.movedim(-1, 1) if self.colours > 1 else values[:, None]
        x = F.pad(values, (0, 0, 0, 0, 0, 1), value=1.0)  # ones tell the image from the padding
        us = [self.above(F.pad(x, (1, 1, 2, 0))[:, :, :-1])]
        row_above = self.row_above(F.pad(x, (1, 1, 1, 0))[:, :, :-1])
        uls = [row_above + self.left(F.pad(x, (1, 0, 1, 0))[:, :, :, :-1])]
        for level in range(3):
            if level > 0:
                us.append(self.u_down[level - 1](us[-1]))
                uls.append(self.ul_down[level - 1](uls[-1]))
            for u_block, ul_block in zip(*pair(self.u_falling, self.ul_falling, level), strict=True):
                us.append(u_block(us[-1]))
                uls.append(ul_block(uls[-1], us[-1]))
        u, ul = us.pop(), uls.pop()
        for level in range(3):
            if level > 0:
                u, ul = self.u_up[level - 1](u), self.ul_up[level - 1](ul)
            for u_block, ul_block in zip(*pair(self.u_rising, self.ul_rising, level), strict=True):
                u = u_block(u, us.pop())
                ul = ul_block(ul, torch.cat([u, uls.pop()], dim=1))
        return self._by_colour(self.head(F.elu(ul)), values)

    def _by_colour(self, out: Tensor, values: Tensor) -> Tensor:
        """Log-weights, means and log-scales of the mixtures."""
        if self.colours == 1:
            weights, means, log_scales = out.chunk(3, dim=1)
            return torch.cat([weights, means, log_scales.clamp(min=-7)], dim=1)
        weights, rest = out.split([self.mixtures, 9 * self.mixtures], dim=1)
        means, log_scales, coefficients = rest.unflatten(1, (3, 3, self.mixtures)).unbind(1)
        a, b, c = coefficients.tanh().unbind(1)
        red, green = values[:, :1], values[:, 1:2]
        shifted = means[:, 0], means[:, 1] + a * red, means[:, 2] + b * red + c * green
        by_colour = [
            torch.cat([weights, mean, log_scales[:, colour].clamp(min=-7)], dim=1)
            for colour, mean in enumerate(shifted)
        ]
        return torch.stack(by_colour, dim=-1)
