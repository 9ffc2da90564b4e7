"""A model with a residual quantiser, through the steps of the pipeline: positions have several codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pipeline.trained import train, train_its_prior
from vqfast.pipeline import Run, SampleRequest, encode, load_priors, reopen_parts, sample, stage_codes

QUANTIZER = {"class": "ResidualVQLayer", "num_embeddings": 8, "embedding_dim": 4, "num_quantizers": 3}


def test_residual_codes_are_encoded_learned_and_sampled(data: Path) -> None:
    run = Run(data / "residual", create=True)
    options = {"quantizer": QUANTIZER, "num_embeddings": None, "embedding_dim": None}
    model = train(run, data, model_options=options, steps=2)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    (codes,), _ = stage_codes(run, "codes/train").all()
    assert codes.shape[3] == 3
    with pytest.raises(
        ValueError, match="prior is 'residual'; want 'gated', since each position has several"
    ):
        train_its_prior(run, prior="residual", prior_options={})
    trained = train_its_prior(run, steps=3)
    assert trained.num_quantizers == 3
    drawn, _ = sample(run, load_priors(run, model), SampleRequest(5, [(2, 3)], 1), temperature=0.9).all()
    assert drawn[0].shape == (5, 2, 3, 3)
    assert torch.equal(drawn[0], trained.sample(5, (2, 3), labels=1, temperature=0.9))
