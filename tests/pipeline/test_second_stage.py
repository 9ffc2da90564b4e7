"""A second VQ-VAE over the codes of a run: its codes are one more level of all steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.trained import MODEL, PRIOR, files, train
from vqfast.models import VQVAE, SecondStage
from vqfast.pipeline import (
    PriorTraining,
    Run,
    SampleRequest,
    Training,
    bits_per_code,
    decode,
    encode,
    load_model,
    reopen_parts,
    sample,
    stage_codes,
    train_priors,
    train_second_stage,
)

SMALL: dict[str, Any] = {**MODEL, "num_downsamplings": 1, "num_residual_blocks": 1}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """A run with 4x6 codes."""
    run = Run(tmp_path_factory.mktemp("first"), create=True)
    train(run, data, steps=30, model_options={"num_downsamplings": 1})
    return run


def test_codes_of_codes_go_through_all_steps(first: Run, tmp_path: Path) -> None:
    before, run = files(first.folder), Run(tmp_path / "second", create=True)
    training = Training(steps=40, batch_size=16, lr=3e-3, val_every=20)
    model = train_second_stage(run, first, model_options=SMALL, training=training)
    assert files(first.folder) == before
    trained = load_model(first.folder, "vqvae")
    for name, tensor in trained.state_dict().items():  # it has learned nothing new
        assert torch.equal(model.state_dict()[f"first.{name}"], tensor)
    assert model.codebook_sizes == (8, 8) and not model.training
    parts = reopen_parts(run)
    assert parts["train"].fingerprint == reopen_parts(first)["train"].fingerprint
    for part, images in parts.items():
        encode(run, model, images, part=part)
    (coarse, fine), _ = stage_codes(run, "codes/held-out").all()
    x = parts["held-out"].batch(range(15))
    assert torch.equal(fine, trained.encode_levels(x)[0]) and coarse.shape == (15, 2, 3)
    small = {"condition_channels": 8, "condition_blocks": 1, "training": PriorTraining(steps=2)}
    priors = train_priors(run, prior_options=PRIOR, **small)
    assert bits_per_code(priors, stage_codes(run, "codes/held-out")).shape == (15, 2)
    samples = sample(run, priors, SampleRequest(3, model.code_shapes((8, 12))))
    decode(run, model, samples, format="png")
    assert len(list((run.folder / "png").iterdir())) == 3
    with pytest.raises(ValueError, match=r"vqvae with other settings: .*steps was 40, now 3"):
        train_second_stage(run, first, model_options=SMALL, training=Training(steps=3))


def test_the_second_model_learns_the_first_ones_vectors(first: Run, tmp_path: Path) -> None:
    images = reopen_parts(first)["train"]
    errors = []
    for steps in (1, 150):
        run = Run(tmp_path / str(steps), create=True)
        training = Training(steps=steps, batch_size=32, lr=5e-3)
        options = {**SMALL, "num_embeddings": 64, "hidden_channels": 16}
        model = train_second_stage(run, first, model_options=options, training=training)
        with torch.no_grad():
            errors.append(model(images.batch(range(45))).loss.item())
    assert errors[1] < 0.7 * errors[0], errors


def test_decoding_without_the_first_codes() -> None:
    torch.manual_seed(0)
    first = VQVAE(hidden_channels=8, embedding_dim=4, num_embeddings=16, in_channels=1).eval()
    second = VQVAE(in_channels=4, hidden_channels=8, num_downsamplings=1, num_embeddings=8)
    model = SecondStage(first, second).eval()
    assert model.strides == (8, 4) and model.code_shapes((16, 32)) == [(2, 4), (4, 8)]
    x = torch.rand(2, 1, 16, 32)
    coarse, fine = model.encode_levels(x)
    nearest = first.vq.encode(second.decode(coarse))
    assert torch.equal(model.decode_levels([coarse]), first.decode(nearest))
    assert torch.equal(model.decode_levels([coarse, fine]), first.decode(fine))
    out = model.train()(x)
    assert out.loss.requires_grad and not out.reconstruction.requires_grad and not first.training
    out.loss.backward()
    assert all(p.grad is None for p in first.parameters()) and second.encoder[0].weight.grad.any()


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "first is a Linear", (torch.nn.Linear(2, 2), VQVAE(hidden_channels=8))),
        (TypeError, "second is a NoneType", (VQVAE(hidden_channels=8), None)),
        (ValueError, r"second has in_channels and ndim \(3, 2\); want \(64, 2\)", ()),
    ],
)
def test_models_that_do_not_fit(error: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=message):
        SecondStage(*(arguments or [VQVAE(hidden_channels=8), VQVAE(hidden_channels=8)]))
    model = SecondStage(VQVAE(hidden_channels=8), VQVAE(hidden_channels=8, in_channels=64))
    for bad in ([], [torch.zeros(1, 1, 1).long()] * 3, torch.zeros(1, 1, 1).long()):
        with pytest.raises(ValueError, match=r"indices has .* levels; want 1\.\.2 in a list"):
            model.decode_levels(bad)
