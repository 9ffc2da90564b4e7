"""Swap VQLayer into a model: an autoencoder of handwritten digits, with the usual layer and with vqfast's.

python examples/swap_layer.py [--steps N]
"""

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vqfast


class VectorQuantizer(nn.Module):
    """The layer as it circulates in many copies."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.embedding.weight.data.uniform_(-1 / num_embeddings, 1 / num_embeddings)

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = z_e.permute(0, 2, 3, 1).reshape(-1, z_e.shape[1])
        distances = torch.cdist(vectors, self.embedding.weight)
        indices = distances.argmin(1).view(z_e.shape[0], *z_e.shape[2:])
        z_q = self.embedding(indices).permute(0, 3, 1, 2)
        loss = F.mse_loss(z_q, z_e.detach()) + 0.25 * F.mse_loss(z_e, z_q.detach())
        return z_e + (z_q - z_e).detach(), indices, loss


class Autoencoder(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.quantizer(self.encoder(x))
        return self.decoder(quantized), indices, loss


def train(quantizer: nn.Module, images: Tensor, steps: int) -> str:
    """Trains an autoencoder; its final error, codes in use and time."""
    torch.manual_seed(0)
    model = Autoencoder(quantizer)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    began = time.perf_counter()
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        reconstruction, _, loss = model(batch)
        adam.zero_grad()
        (F.mse_loss(reconstruction, batch) + loss).backward()
        adam.step()
    seconds = time.perf_counter() - began
    reconstruction, indices, _ = model.eval()(images)
    error, used = F.mse_loss(reconstruction, images).item(), len(indices.unique())
    return f"mean squared error {error:.4f}, {used} codes in use, {seconds:.1f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16

    quantizers = {
        "the usual layer": VectorQuantizer(256, 16),
        "VQLayer": vqfast.VQLayer(256, 16),
        "VQLayer, moving average, k-means": vqfast.VQLayer(256, 16, decay=0.99, kmeans_init=True),
    }
    for name, quantizer in quantizers.items():
        print(f"{name}: {train(quantizer, images, steps)}")
