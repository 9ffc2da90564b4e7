"""Samples that a classifier finds unlikely of their class are drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pipeline.trained import train
from vqfast.models import VQVAE, Classifier
from vqfast.pipeline import (
    Rejection,
    Run,
    SampleRequest,
    Training,
    decode,
    load_model,
    num_rejected,
    sample,
    shards,
    train_classifier,
)
from vqfast.pipeline.shards import read_shards
from vqfast.priors.base import CausalPrior

REQUEST = SampleRequest(11, [(2, 3)])


def judge(items: Tensor) -> Tensor:
    """Three classes, whose likelihood is some function of the items."""
    numbers = items.flatten(1).mul(1e4).sum(1)
    return torch.stack([torch.cos(numbers * (k + 1)) for k in range(3)], 1)


def drawn(trained: Run, prior: CausalPrior, vqvae: VQVAE, folder: Path, **changes: Any) -> tuple[Any, ...]:
    """The codes, labels and numbers of rejected draws of accepted samples."""
    out, reject = Run(folder, create=True), Rejection(vqvae, judge, 0.4, "cosines")
    samples = sample(trained, [prior], changes.pop("request", REQUEST), out=out, reject=reject, **changes)
    (indices,), labels = samples.all()
    rejected = read_shards(folder / "samples", samples.num, range(samples.num))["rejected"]
    assert num_rejected(out) == rejected.sum()
    return indices, labels, rejected


@torch.no_grad()
def test_each_sample_is_the_first_that_the_classifier_accepts(
    trained: Run, prior: CausalPrior, vqvae: VQVAE, tmp_path: Path
) -> None:
    indices, labels, rejected = drawn(trained, prior, vqvae, tmp_path / "a", seed=5)
    assert labels.tolist() == [i % 3 for i in range(11)] and rejected.max() > 1 and rejected.min() == 0
    for number, (label, times) in enumerate(zip(labels.tolist(), rejected.tolist(), strict=True)):
        for attempt in range(times + 1):
            numbers = torch.tensor([number + (attempt << 32)])
            codes = prior.sample(1, (2, 3), labels=label, seed=5, numbers=numbers)
            p = judge(vqvae.decode(codes).clamp(0, 1)).softmax(1)[0, label]
            assert (p >= 0.4) == (attempt == times)
        assert torch.equal(codes[0], indices[number])
    settings = Run(tmp_path / "a", lock=False).settings("samples")
    assert settings["reject"] == {"minimum": 0.4, "classifier": "cosines"}


def test_the_samples_depend_neither_on_shards_nor_on_their_number(
    trained: Run, prior: CausalPrior, vqvae: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = drawn(trained, prior, vqvae, tmp_path / "a")
    fewer = drawn(trained, prior, vqvae, tmp_path / "b", request=SampleRequest(7, [(2, 3)]))
    assert torch.equal(fewer[0], expected[0][:7])
    monkeypatch.setattr(shards, "SHARD", 4)
    drawn(trained, prior, vqvae, tmp_path / "c")
    (tmp_path / "c" / "samples" / "00001.npz").unlink()  # as if it was killed before
    again = drawn(trained, prior, vqvae, tmp_path / "c")
    assert all(np.array_equal(one, two) for one, two in zip(again, expected, strict=True))


def test_refusals(trained: Run, prior: CausalPrior, vqvae: VQVAE, tmp_path: Path) -> None:
    def never(items: Tensor) -> Tensor:
        return torch.zeros(len(items), 3)

    out = Run(tmp_path / "out", create=True)
    with pytest.raises(ValueError, match=r"of 100 draws of a sample none has probability 0\.5 of class 0"):
        sample(trained, [prior], REQUEST, out=out, reject=Rejection(vqvae, never, 0.5, ""))
    for minimum, error in ((0, ValueError), (1, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="reject is "):
            Rejection(vqvae, judge, minimum, "")
    with pytest.raises(FileNotFoundError, match=r"classifier\.safetensors is missing: train the classifier"):
        Rejection.of_run(trained, vqvae, 0.5)
    plain = type(prior)(8, channels=4, num_layers=1)
    with pytest.raises(ValueError, match="reject is given; want None: the samples have no classes"):
        sample(trained, [plain], REQUEST, out=out, reject=Rejection(vqvae, judge, 0.5, ""))


def test_the_classifier_of_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = rng.integers(0, 60, (60, 8, 8)) + 90 * labels[:, None, None]
    np.save(tmp_path / "x.npy", pixels.astype(np.uint8))
    np.save(tmp_path / "y.npy", labels)
    run = Run(tmp_path / "run", create=True)
    vqvae = train(run, tmp_path, steps=1)
    training = Training(steps=40, batch_size=16, lr=1e-2, val_every=20)
    classifier = train_classifier(run, training=training)
    x = torch.from_numpy(pixels[:, None].astype(np.float32) / 255)
    assert (classifier(x).argmax(1).numpy() == labels).mean() > 0.95 and not classifier.training
    before = (run.folder / "classifier.safetensors").stat().st_mtime_ns
    train_classifier(run, training=training)
    assert (run.folder / "classifier.safetensors").stat().st_mtime_ns == before
    accepts = Rejection.of_run(run, vqvae, 0.5).accepts(
        vqvae.encode_levels(x), torch.from_numpy(labels), torch.arange(60)
    )
    assert accepts.shape == (60,) and accepts.dtype == torch.bool
    assert load_model(run.folder, "classifier").config == classifier.config
    other = Run(tmp_path / "other", create=True)
    train(other, tmp_path, labels=False, steps=1)
    with pytest.raises(ValueError, match="has no labels; want some for a classifier"):
        train_classifier(other)


def test_items_of_any_number_of_axes() -> None:
    for ndim in (1, 2, 3):
        assert Classifier(2, 4, hidden_channels=4, ndim=ndim)(torch.rand(3, 2, *[8] * ndim)).shape == (3, 4)


def test_rejected_samples_are_decoded_as_others(
    trained: Run, prior: CausalPrior, vqvae: VQVAE, tmp_path: Path
) -> None:
    out, reject = Run(tmp_path, create=True), Rejection(vqvae, judge, 0.4, "")
    decode(trained, vqvae, sample(trained, [prior], REQUEST, out=out, reject=reject), format="png", out=out)
    assert len(list((tmp_path / "png").iterdir())) == 11
