"""Train a VQ-VAE and its prior in loops of your own, keep them, and draw new digits.

python examples/train_loop.py [--steps N] [--out FOLDER]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import vqfast
from vqfast.data.images.sheet import grid


def train_vqvae(images: Tensor, steps: int) -> vqfast.VQVAE:
    """``loss`` of the model is the quantiser's: add the reconstruction's."""
    model = vqfast.VQVAE(
        in_channels=1, hidden_channels=32, num_downsamplings=1, num_embeddings=64, embedding_dim=16
    )
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        reconstruction, indices, loss = model(batch)
        error = F.mse_loss(reconstruction, batch)
        adam.zero_grad()
        (error + loss).backward()
        adam.step()
        if step % 100 == 0:
            print(f"step {step}: error {error:.4f}, perplexity {model.vq.perplexity(indices):.1f}")
    return model.eval()


def train_prior(indices: Tensor, labels: Tensor, steps: int) -> vqfast.PixelCNN:
    """The logits at a position are for the code there, given the codes before it."""
    prior = vqfast.PixelCNN(64, channels=32, num_layers=4, num_classes=10)
    adam = torch.optim.Adam(prior.parameters(), 1e-3)
    for step in range(steps):
        batch = torch.randint(len(indices), (64,))
        loss = F.cross_entropy(prior(indices[batch], labels[batch]), indices[batch])
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % 100 == 0:
            print(f"step {step}: {loss / torch.log(torch.tensor(2.0)):.2f} bits a code")
    return prior.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/loop"))
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)

    vqvae = train_vqvae(images, options.steps)
    indices = vqvae.encode(images)  # (1797, 4, 4)
    prior = train_prior(indices, torch.tensor(digits.target), options.steps)
    vqvae.save_pretrained(options.out / "vqvae", overwrite=True)
    prior.save_pretrained(options.out / "prior", overwrite=True)

    labels = torch.arange(10).repeat_interleave(10)
    new = vqvae.decode(prior.sample(100, (4, 4), labels=labels, seed=0))
    (options.out / "new.png").write_bytes(grid(new, columns=10))
    print(f"100 new digits in {options.out / 'new.png'}, a class a line")
