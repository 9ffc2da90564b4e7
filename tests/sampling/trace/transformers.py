"""Transformers over codes, as people write them: learned or rotary positions, pre-norm blocks, starts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sampling.trace.networks import K


class Block(nn.Module):
    """LayerNorm before causal attention and before two linear layers; both are added."""

    def __init__(self, channels: int, heads: int, rotary: bool, activation: nn.Module) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), activation, nn.Linear(2 * channels, channels)
        )

    def rotated(self, x: Tensor) -> Tensor:
        """Rotary positions of ``(B, heads, N, C)``."""
        half = x.shape[3] // 2
        angles = torch.arange(x.shape[2])[:, None] / 10 ** (torch.arange(half) / half)
        angles = torch.cat([angles, angles], dim=1).to(x.dtype)
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=3)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norms[0](x)).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.rotary:
            query, key = self.rotated(query), self.rotated(key)
        mean = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mean.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class OwnGELU(nn.Module):
    """The approximation of GELU, spelled out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GPT(nn.Module):
    """A transformer over sequences of codes.

    ``start`` says what precedes the first code: nothing, so that logits are for the next code; a code of its
    own, before or by a pad; a learned vector, before or after positions are added; or a vector of the label.
    """

    def __init__(
        self, start: str, heads: int = 2, activation: nn.Module | None = None, rotary: bool = False
    ) -> None:
        super().__init__()
        channels, self.start = 8, start
        self.tokens, self.labels = nn.Embedding(K + 1, channels), nn.Embedding(3, channels)
        self.positions = None if rotary else nn.Parameter(torch.randn(1, 9, channels))
        self.first = nn.Parameter(torch.randn(1, 1, channels))
        self.blocks = nn.ModuleList(Block(channels, heads, rotary, activation or nn.GELU()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, K, bias=False)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.start == "code":
            codes = torch.cat([codes.new_full((len(codes), 1), K), codes[:, :-1]], dim=1)
        if self.start == "pad":
            codes = F.pad(codes[:, :-1], (1, 0), value=K)
        if self.start in ("vector", "label"):
            first = self.first.expand(len(codes), -1, -1)
            first = self.labels(labels)[:, None] if labels is not None else first
            x = torch.cat([first, self.tokens(codes[:, :-1])], dim=1)
        else:
            x = self.tokens(codes)
        if self.positions is not None:
            x = x + self.positions[:, : x.shape[1]]
        if self.start == "late":
            x = torch.cat([self.first.expand(len(x), -1, -1), x[:, :-1]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).mT
