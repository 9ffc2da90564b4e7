"""Bring your own PixelCNN, in plain PyTorch: sampled by vqfast and by the loop that everybody writes.

python examples/own_pixelcnn.py [--size N]
"""

import argparse
import time

import torch
from torch import Tensor, nn

import vqfast


class MaskedConv(nn.Conv2d):
    """Sees the rows above and what is left of the position; itself too, unless it is the first layer."""

    def __init__(self, channels: int, size: int, first: bool) -> None:
        super().__init__(channels, channels, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + (not first) :] = 0
        mask[size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class YourPixelCNN(nn.Module):
    def __init__(self, num_embeddings: int = 64, channels: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, channels)
        self.first = MaskedConv(channels, 7, first=True)
        self.layers = nn.ModuleList(MaskedConv(channels, 3, first=False) for _ in range(layers))
        self.head = nn.Conv2d(channels, num_embeddings, 1)

    def forward(self, indices: Tensor) -> Tensor:
        """``(B, H, W)`` -> logits ``(B, num_embeddings, H, W)``."""
        x = self.first(self.embedding(indices).permute(0, 3, 1, 2))
        for layer in self.layers:
            x = x + layer(torch.relu(x))
        return self.head(torch.relu(x))


def naive(network: nn.Module, num: int, shape: tuple[int, int]) -> Tensor:
    """The loop that everybody writes: the whole network once a position."""
    indices = torch.zeros(num, *shape, dtype=torch.long)
    for y in range(shape[0]):
        for x in range(shape[1]):
            p = network(indices)[:, :, y, x].softmax(1)
            indices[:, y, x] = torch.multinomial(p, 1)[:, 0]
    return indices


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=16, help="of the grid")
    shape = (size := parser.parse_args().size, size)

    torch.manual_seed(0)
    network = YourPixelCNN().eval()
    prior = vqfast.program_of(network, num_embeddings=64, shape=shape)
    prior.sample(1, shape)  # compiles the C++ library, where it isn't yet

    began = time.perf_counter()
    with torch.inference_mode():
        naive(network, 4, shape)
    slow = time.perf_counter() - began
    began = time.perf_counter()
    fast_indices = prior.sample(4, shape, seed=1)
    fast = time.perf_counter() - began
    print(f"4 grids of {size}x{size}: naive loop {slow:.2f} s, vqfast {fast:.3f} s, {slow / fast:.0f}x")

    same = prior.sample(
        4, shape, seed=1, method="reference"
    )  # your network, once a position, with vqfast's noise
    print(
        f"codes that differ from your network's own: {(same != fast_indices).sum().item()} of {same.numel()}"
    )
