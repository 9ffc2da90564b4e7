"""A VQ-VAE whose decoder has a likelihood, through the steps of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqfast.data import load_images
from vqfast.models import VQVAE
from vqfast.pipeline import Run, Training, bits_per_dim, load_model, reopen_parts, train_vqvae


def test_training_minimises_the_nats_of_a_value(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    options: dict[str, Any] = {
        "hidden_channels": 8,
        "num_embeddings": 8,
        "embedding_dim": 4,
        "num_mixtures": 2,
        "kmeans_init": False,
    }
    training = Training(steps=90, batch_size=16, lr=5e-3)
    reading = {"size": 8}
    model = train_vqvae(run, "digits", reading=reading, model_options=options, training=training)
    assert isinstance(model, VQVAE)
    history = json.loads((run.folder / "vqvae.history.json").read_text())
    assert history["loss"][-1] < history["loss"][0] - 0.5

    x = load_images("digits", size=8).batch(range(64))
    torch.manual_seed(0)
    fresh = VQVAE.named("paper", in_channels=1, **options).eval()
    assert model.bits_per_dim(x).mean() < fresh.bits_per_dim(x).mean() - 0.3
    again = load_model(run.folder, "vqvae")
    assert isinstance(again, VQVAE)
    assert torch.equal(again.bits_per_dim(x), model.bits_per_dim(x))


def test_the_weights_with_the_fewest_held_out_bits_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8))
    run = Run(tmp_path / "run", create=True)
    options = {"hidden_channels": 4, "num_embeddings": 4, "embedding_dim": 2, "num_mixtures": 1}
    training = Training(steps=12, batch_size=8, lr=1.0, val_every=1)  # so high a rate overshoots
    model = train_vqvae(run, tmp_path / "x.npy", model_options=options, val=0.2, training=training)
    bits = json.loads((run.folder / "vqvae.history.json").read_text())["held_out_bits_per_dim"]
    assert len(bits) == 12 and min(bits) < bits[-1]
    assert isinstance(model, VQVAE)
    held_out = bits_per_dim(model, reopen_parts(run)["held-out"])
    assert held_out.shape == (6,) and held_out.mean().item() == pytest.approx(min(bits))
