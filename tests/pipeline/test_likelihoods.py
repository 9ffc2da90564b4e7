"""A VQ-VAE whose decoder has a likelihood, through the steps of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vqfast.data import load_images
from vqfast.models import VQVAE
from vqfast.pipeline import Run, Training, load_model, train_vqvae


def test_training_minimises_the_nats_of_a_value(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    options: dict[str, Any] = {
        "hidden_channels": 8,
        "num_embeddings": 8,
        "embedding_dim": 4,
        "num_mixtures": 2,
    }
    training = Training(steps=90, batch_size=16, lr=5e-3)
    reading = {"size": 8}
    model = train_vqvae(
        run, "digits", reading=reading, model_options=options, codebook="uniform", training=training
    )
    history = json.loads((run.folder / "vqvae.history.json").read_text())
    assert history["loss"][-1] < history["loss"][0] - 0.5

    x = load_images("digits", size=8).batch(range(64))
    torch.manual_seed(0)
    fresh = VQVAE.named("paper", in_channels=1, **options).eval()
    assert model.bits_per_dim(x).mean() < fresh.bits_per_dim(x).mean() - 0.3
    again = load_model(run.folder, "vqvae")
    assert torch.equal(again.bits_per_dim(x), model.bits_per_dim(x))
