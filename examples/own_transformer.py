"""Bring your own transformer, in plain PyTorch: a GPT over the codes of a VQ-VAE, in raster order.

python examples/own_transformer.py [--size N]
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast


class Block(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class YourGPT(nn.Module):
    """Takes codes and returns the logits of the next ones; code ``num_embeddings`` stands for the start."""

    def __init__(self, num_embeddings: int, length: int, channels: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_embeddings + 1, channels)
        self.positions = nn.Parameter(torch.randn(1, length, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads=4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, num_embeddings)

    def forward(self, codes: Tensor) -> Tensor:
        """``(B, T)`` -> ``(B, T, num_embeddings)``."""
        x = self.tokens(codes) + self.positions[:, : codes.shape[1]]
        return self.head(self.norm(self.blocks(x)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=16, help="of the grid of codes")
    size, num_embeddings = parser.parse_args().size, 64

    torch.manual_seed(0)
    network = YourGPT(num_embeddings, size * size).eval()

    def call(codes: Tensor) -> Tensor:
        """The start before the codes, as in training; and the codes' axis second."""
        return network(F.pad(codes[:, :-1], (1, 0), value=num_embeddings)).mT

    prior = vqfast.program_of(call, num_embeddings=num_embeddings, shape=(size * size,))
    seconds = {}
    for method in ("auto", "reference"):  # the reference is the whole network once a position
        prior.sample(1, (2,), method=method)
        began = time.perf_counter()
        codes = prior.sample(4, (size * size,), seed=1, method=method)
        seconds[method] = (time.perf_counter() - began, codes)
    (fast, drawn), (slow, expected) = seconds.values()
    print(f"4 grids of {size}x{size}: naive loop {slow:.2f} s, vqfast {fast:.3f} s, {slow / fast:.0f}x")
    grids = drawn.view(-1, size, size)  # for VQVAE.decode
    print(f"codes that differ: {(drawn != expected).sum().item()} of {grids.numel()}")
