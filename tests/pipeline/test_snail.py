"""PixelSNAIL, the prior of VQ-VAE-2, trained and sampled on two levels of codes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.pipeline.trained import TRAINING, train
from vqfast.pipeline import (
    PriorTraining,
    Run,
    SampleRequest,
    encode,
    load_priors,
    reopen_parts,
    sample,
    train_priors,
)
from vqfast.priors import PixelSNAIL


def test_pixelsnail_is_trained_and_sampled_on_both_levels(data: Path) -> None:
    run = Run(data / "snail", create=True)
    small = {"residual_channels": 4, "num_embeddings": 30, "num_downsamplings": 1}
    model = train(run, data, model="vqvae2", model_options=small, steps=2)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    options = {"channels": 4, "num_blocks": 1, "num_layers": 1, "num_heads": 2, "head_channels": 4}
    priors = train_priors(
        run,
        prior="snail",
        prior_options={**options, "dropout": 0.1},
        condition_channels=4,
        condition_blocks=1,
        training=PriorTraining(**TRAINING),
    )
    assert isinstance(priors[0], PixelSNAIL) and priors[0].config["dropout"] == 0.1
    (top, bottom), labels = sample(run, priors, SampleRequest(3, [(2, 3), (4, 6)])).all()
    coarse = priors[0].sample(3, (2, 3), labels=labels, method="reference")
    assert top.shape == (3, 2, 3) and bottom.shape == (3, 4, 6) and torch.equal(top, coarse)
    again = load_priors(run, model)
    for prior, loaded in zip(priors, again, strict=True):
        for name, tensor in prior.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])
