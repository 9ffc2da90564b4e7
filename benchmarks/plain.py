"""Priors as public repositories write them in PyTorch: masked kernels, padded stacks, gates of five ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMasked(nn.Conv2d):
    """The usual masked convolution: a convolution whose kernel is multiplied by a mask."""

    mask: Tensor
    bias: nn.Parameter  # PyTorch's class may have none

    def __init__(self, in_channels: int, out_channels: int, size: int, mask_type: str) -> None:
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        taps = size * size // 2 + (mask_type == "B")
        self.register_buffer("mask", (torch.arange(size * size).view(size, size) < taps).float())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)``."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def plain_gate(x: Tensor) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the two halves of the channels."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class PlainGatedLayer(nn.Module):
    """A gated layer of the common repositories: padded, convolved, cropped; mask A by zeroed weights."""

    def __init__(self, channels: int, size: int, mask_type: str) -> None:
        super().__init__()
        half = size // 2
        self.mask_type = mask_type
        self.vertical = nn.Conv2d(channels, 2 * channels, (half + 1, size), padding=(half, half))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, half + 1), padding=(0, half))
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks, ``(B, channels, H, W)``."""
        if self.mask_type == "A":
            self.vertical.weight.data[:, :, -1].zero_()
            self.horizontal.weight.data[:, :, :, -1].zero_()
        above = self.vertical(v)[:, :, : v.shape[2]]
        across = self.horizontal(h)[:, :, :, : h.shape[3]] + self.vertical_to_horizontal(above)
        out = self.output(plain_gate(across))
        return plain_gate(above), out + h if self.mask_type == "B" else out


class PlainGated(nn.Module):
    """The gated PixelCNN of the common repositories."""

    def __init__(self, num_embeddings: int, channels: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, channels)
        kinds = [(7, "A")] + [(3, "B")] * (num_layers - 1)
        self.layers = nn.ModuleList(PlainGatedLayer(channels, *kind) for kind in kinds)
        self.head = nn.Sequential(nn.Conv2d(channels, 512, 1), nn.ReLU(), nn.Conv2d(512, num_embeddings, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, h = layer(v, h)
        logits: Tensor = self.head(h)
        return logits

    def load(self, prior: nn.Module) -> None:
        """Takes over the weights of a ``PixelCNN``; taps that mask A hides become zeros."""
        state = prior.state_dict()
        for name, pad in (("vertical", [0, 0, 0, 1]), ("horizontal", [0, 1])):
            state[f"layers.0.{name}.weight"] = F.pad(state[f"layers.0.{name}.weight"], pad)
        self.load_state_dict(state)


class PlainResidualBlock(nn.Module):
    """1x1, masked 3x3, 1x1, a ReLU after each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, channels // 2, 1)
        self.conv = PlainMasked(channels // 2, channels // 2, 3, "B")
        self.grow = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)``."""
        change: Tensor = self.grow(self.conv(self.shrink(x).relu()).relu())
        return x + change.relu()


class PlainResidual(nn.Module):
    """The Keras example's prior in PyTorch."""

    def __init__(self, num_embeddings: int, channels: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.first = PlainMasked(num_embeddings, channels, 7, "A")
        self.blocks = nn.ModuleList(PlainResidualBlock(channels) for _ in range(2))
        self.layers = nn.ModuleList(PlainMasked(channels, channels, 1, "B") for _ in range(2))
        self.head = nn.Conv2d(channels, num_embeddings, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        x = self.first(F.one_hot(codes, self.num_embeddings).permute(0, 3, 1, 2).float()).relu()
        for block in self.blocks:
            x = block(x)
        for layer in self.layers:
            x = layer(x).relu()
        logits: Tensor = self.head(x)
        return logits

    def load(self, prior: nn.Module) -> None:
        """Takes over the weights of a ``ResidualPixelCNN``."""
        self.load_state_dict(prior.state_dict(), strict=False)  # all but the masks
