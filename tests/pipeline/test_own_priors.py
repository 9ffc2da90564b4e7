"""A model whose levels have priors of their own: no others need be trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.trained import PRIOR, train
from vqfast.models import HierarchicalVQVAE, LevelPrior
from vqfast.pipeline import (
    Completion,
    PriorTraining,
    Run,
    SampleRequest,
    bits_per_code,
    encode,
    load_priors,
    modality_of,
    reopen_parts,
    sample,
    shards,
    stage_codes,
    train_priors,
)

SHAPES = [(4, 4), (8, 8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Run, HierarchicalVQVAE]:
    """A run and its model, whose levels have 4x4 and 8x8 codes."""
    run = Run(tmp_path_factory.mktemp("own"), create=True)
    options = {"num_levels": 2, "hidden_channels": 32, "embedding_dim": None, "num_embeddings": 5}
    model = train(run, data, model="ruseckas-hierarchical", model_options=options, size=8, steps=3)
    assert isinstance(model, HierarchicalVQVAE)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    return run, model


def test_samples_are_drawn_by_the_models_priors(
    run: tuple[Run, HierarchicalVQVAE], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = run
    priors = load_priors(folder, model)
    assert [type(prior) for prior in priors] == [LevelPrior] * 2
    (top, bottom), labels = sample(
        folder, priors, SampleRequest(9, SHAPES), out=Run(tmp_path / "a", create=True)
    ).all()
    assert top.shape == (9, 4, 4) and bottom.shape == (9, 8, 8) and labels is None
    assert len(top.unique()) > 1 and len(bottom.unique()) > 1
    monkeypatch.setattr(shards, "SHARD", 4)
    monkeypatch.setattr("vqfast.models.level_prior.NOISE", 50)
    again = sample(
        folder, priors, SampleRequest(9, SHAPES), out=Run(tmp_path / "b", create=True), batch_size=2
    )
    assert torch.equal(again.all()[0][0], top) and torch.equal(again.all()[0][1], bottom)
    cold = LevelPrior(model, 1).sample(9, (8, 8), coarser=[top], temperature=0)
    assert torch.equal(cold, model.prior_logits([top], 9).argmax(1))
    with pytest.raises(ValueError, match=r"shape is \(4, 8\); want \(8, 8\), the model's"):
        LevelPrior(model, 1).sample(9, (4, 8), coarser=[top])
    with pytest.raises(ValueError, match="coarser has 2 levels; want less than 2"):
        model.prior_logits([top, bottom], 9)


def test_draws_have_the_models_distribution(run: tuple[Run, HierarchicalVQVAE]) -> None:
    model = run[1]
    drawn = LevelPrior(model, 0).sample(4000, (4, 4), seed=3)
    p = model.prior_logits([], 1).softmax(1)[0].detach()
    found = F.one_hot(drawn, 5).double().mean(0).movedim(-1, 0)
    assert (found - p).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_likelihoods_and_completions(run: tuple[Run, HierarchicalVQVAE], tmp_path: Path) -> None:
    folder, model = run
    priors, images = load_priors(folder, model), reopen_parts(folder)["held-out"]
    bits = bits_per_code(priors, stage_codes(folder, "codes/held-out"))
    x = images.batch(range(15))
    levels = model.encode_levels(x)
    with torch.no_grad():
        for level, indices in enumerate(levels):
            p = model.prior_logits(levels[:level], 15).softmax(1).gather(1, indices.unsqueeze(1))
            expected = -p.log2().flatten(1).mean(1)
            torch.testing.assert_close(bits[:, level], expected.double(), rtol=1e-4, atol=1e-4)
    completion = Completion(model, images, modality_of(folder), draws=1)
    out = Run(tmp_path, create=True)
    (top, bottom), _ = sample(folder, priors, completion.request(priors, num=4), out=out).all()
    assert torch.equal(top[:, :2], levels[0][:4, :2]) and torch.equal(bottom[:, :4], levels[1][:4, :4])


def test_trained_priors_come_first(run: tuple[Run, HierarchicalVQVAE]) -> None:
    folder, model = run
    small = {"condition_channels": 4, "condition_blocks": 0, "training": PriorTraining(steps=1)}
    train_priors(folder, prior_options=PRIOR, **small)
    assert [type(prior).__name__ for prior in load_priors(folder, model)] == ["PixelCNN", "ConditionedPrior"]
    plain = HierarchicalVQVAE(hidden_channels=4)
    with pytest.raises(ValueError, match="architecture is 'vqvae2'; want 'ruseckas-hierarchical'"):
        LevelPrior(plain, 0)


def test_bad_arguments_of_a_models_own_prior(run: tuple[Run, HierarchicalVQVAE]) -> None:
    prior, top = LevelPrior(run[1], 1), torch.zeros(3, 4, 4, dtype=torch.int64)
    for options, message in (
        ({"num": 0}, "num is 0; want a positive integer"),
        ({"shape": 8}, "shape is 8; want a shape"),
        ({"coarser": []}, "coarser has 0 levels; want 1"),
        ({"coarser": top}, "coarser is a Tensor; want a list"),
        ({"coarser": [top[:2]]}, r"coarser\[0\] has 2 grids; want 3"),
        ({"coarser": [top.float()]}, r"coarser\[0\] has dtype torch.float32; want an integer"),
        ({"coarser": [top + 99]}, r"coarser\[0\] has values"),
        ({"labels": 1}, "labels is given; want None"),
        ({"known": top}, r"known has shape \(3, 4, 4\); want \(3, 8, 8\)"),
        ({"numbers": torch.arange(2)}, r"numbers has shape \(2,\); want \(3,\)"),
        ({"method": "magic"}, "method is 'magic'; want 'auto'"),
        ({"batch_size": 0}, "batch_size is 0; want a positive integer"),
        ({"progress": 3}, "progress is 3; want a bool or a function"),
    ):
        given: dict[str, Any] = {"num": 3, "shape": (8, 8), "coarser": [top], **options}
        with pytest.raises((TypeError, ValueError), match=message):
            prior.sample(**given)
    with pytest.raises(ValueError, match=r"indices has shape \(3, 4, 4\); want \(B, 8, 8\)"):
        prior.bits_per_code(top, coarser=[top])
    with pytest.raises(ValueError, match="level is 2; want an integer"):
        LevelPrior(run[1], 2)
