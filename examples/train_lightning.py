"""Train a VQ-VAE with Lightning: pip install lightning.

python examples/train_lightning.py [--steps N] [--out FOLDER]
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vqfast


class Tokenizer(lightning.LightningModule):
    """A VQ-VAE; under DDP the codebook's averages are joined over all processes by the layer itself."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.vqvae = vqfast.VQVAE(
            in_channels=1,
            hidden_channels=32,
            num_downsamplings=1,
            num_embeddings=64,
            embedding_dim=16,
            decay=0.99,
        )

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        (images,) = batch
        reconstruction, indices, loss = self.vqvae(images)
        error = F.mse_loss(reconstruction, images)
        self.log_dict({"error": error, "perplexity": self.vqvae.vq.perplexity(indices)}, prog_bar=True)
        return error + loss

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        (images,) = batch
        self.log("val_psnr", -10 * F.mse_loss(self.vqvae(images).reconstruction, images).log10())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="runs/lightning")
    options = parser.parse_args()
    lightning.seed_everything(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    train, held_out = TensorDataset(images[:1500]), TensorDataset(images[1500:])

    model = Tokenizer()
    trainer = lightning.Trainer(
        max_steps=options.steps, accelerator="auto", logger=False, enable_checkpointing=False
    )
    trainer.fit(model, DataLoader(train, 64, shuffle=True), DataLoader(held_out, 64))
    model.vqvae.save_pretrained(options.out, overwrite=True)
    loaded = vqfast.VQVAE.from_pretrained(options.out)
    psnr = trainer.validate(model, DataLoader(held_out, 64), verbose=False)[0]["val_psnr"]
    print(f"{psnr:.1f} dB on held-out digits; codes of one: {loaded.encode(images[:1]).flatten().tolist()}")
