"""The five steps: what they write, what they leave alone, and what they refuse."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.trained import PRIOR, REQUEST, files, train, train_its_prior
from vqfast.data import load_images
from vqfast.data.images.sheet import grid
from vqfast.models import VQVAE
from vqfast.pipeline import (
    Run,
    SampleRequest,
    decode,
    encode,
    reopen_parts,
    sample,
    shards,
    stage_codes,
)
from vqfast.priors.base import CausalPrior
from vqfast.saving.storage import read_json


def test_the_files_of_a_run(trained: Run) -> None:
    names = {str(Path(name).relative_to(trained.folder)) for name in files(trained.folder)}
    models = {
        f"{m}.{s}"
        for m in ("vqvae", "prior")
        for s in ("safetensors", "config.json", "state.safetensors", "history.json", "csv", "png")
    }
    samples = {f"samples/0000{i}.npz" for i in range(3)}
    assert names == {"run.json", "codes/train/00000.npz", "codes/held-out/00000.npz", *models, *samples}
    assert read_json(trained.folder / "vqvae.history.json")["step"] == [0, 10, 11]


def test_codes_are_the_models(trained: Run, vqvae: VQVAE) -> None:
    for part, images in reopen_parts(trained).items():
        (indices,), labels = stage_codes(trained, f"codes/{part}").all()
        x = images.batch(range(len(images)))
        assert indices.shape == (len(images), 2, 3) and indices.dtype == torch.int64
        assert torch.equal(indices, vqvae.encode(x))
        assert labels.tolist() == images.labels.tolist()
    with pytest.raises(FileNotFoundError, match="holds no codes/all: encode first"):
        stage_codes(trained, "codes/all")


def test_codes_of_other_images(tmp_path: Path, trained: Run, vqvae: VQVAE) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    out, images = Run(tmp_path / "out", create=True), load_images(tmp_path / "x.npy")
    encode(trained, vqvae, images, part="all", out=out)
    (indices,), labels = stage_codes(out, "codes/all").all()
    assert indices.shape == (5, 2, 2) and labels is None
    assert out.settings("codes/all")["num"] == 5 and trained.settings("codes/all") is None


def test_samples_are_the_priors(trained: Run, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    samples = stage_codes(trained, "samples")
    (indices,), labels = samples.all()
    assert labels.tolist() == [i % 3 for i in range(21)]
    assert torch.equal(indices, prior.sample(21, (2, 3), labels=labels, seed=4))  # in one go as in 3 shards
    (middle,), their_labels = samples.read(range(5, 18))
    assert torch.equal(middle, indices[5:18]) and torch.equal(their_labels, labels[5:18])


@pytest.mark.parametrize(("label", "labels"), [(None, [0, 1, 2, 0]), (2, [2, 2, 2, 2])])
def test_labels_of_samples(
    tmp_path: Path, trained: Run, prior: CausalPrior, label: int | None, labels: list[int]
) -> None:
    out = Run(tmp_path, create=True)
    assert sample(trained, [prior], SampleRequest(4, [(2, 3)], label), out=out).all()[1].tolist() == labels


def test_known_codes_of_samples(tmp_path: Path, trained: Run, prior: CausalPrior) -> None:
    known = torch.full((21, 2, 3), -1)
    known[:, 0] = torch.arange(63).view(21, 3) % 8
    request = replace(REQUEST, known=lambda numbers: [known[numbers.start : numbers.stop]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        out = Run(tmp_path, create=True)
        (indices,), labels = sample(trained, [prior], request, out=out, seed=4).all()
    assert torch.equal(indices[:, 0], known[:, 0])
    assert torch.equal(indices, prior.sample(21, (2, 3), labels=labels, seed=4, known=known))


@pytest.mark.parametrize(("format", "count"), [("npy", 3), ("png", 21), ("grid", 3)])
def test_decoded_samples(
    tmp_path: Path, trained: Run, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch, format: str, count: int
) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    codes, out = stage_codes(trained, "samples"), Run(tmp_path, create=True)
    decode(trained, vqvae, codes, format=format, out=out)
    found = files(tmp_path / format)
    assert len(found) == count
    with torch.no_grad():
        expected = vqvae.decode_levels(codes.all()[0]).clamp(0, 1)
    if format == "grid":
        contents = [grid(batch, columns=3) for batch in expected.split(8)]
        assert [data for _, (_, data) in sorted(found.items())] == contents
    else:
        paths = sorted((tmp_path / format).iterdir())
        read = (
            np.concatenate([np.load(path) for path in paths])
            if format == "npy"
            else np.stack([np.asarray(Image.open(path)) for path in paths])[:, None]
        )
        assert read.dtype == np.uint8 and read.shape == (21, 1, 8, 12)
        np.testing.assert_allclose(read, expected * 255, atol=0.51)
    # a missing file is made again, the others stay
    last = sorted(found)[-1]
    Path(last).unlink()
    decode(trained, vqvae, codes, format=format, out=out)
    assert {name: data for name, (_, data) in files(tmp_path / format).items()} == {
        name: data for name, (_, data) in found.items()
    }
    first = sorted(found)[0]
    assert files(tmp_path / format)[first] == found[first]
    with pytest.raises(ValueError, match=f"{format} with other settings: codes was .*, now .*; use another"):
        decode(trained, vqvae, replace(codes, fingerprint="others"), format=format, out=out)
    with pytest.raises(ValueError, match="format is 'jpg'; want 'grid', 'png' or 'npy'"):
        decode(trained, vqvae, codes, format="jpg", out=out)


def test_samples_without_labels(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    vqvae = train(run, data, steps=1)
    for part, images in reopen_parts(run).items():
        encode(run, vqvae, images, part=part)
    small = {"channels": 4, "num_residual_blocks": 1, "num_layers": 1}
    prior = train_its_prior(run, prior="residual", prior_options=small, use_labels=False, steps=1)
    assert prior.num_classes is None
    (indices,), labels = sample(run, [prior], SampleRequest(2, [(1, 4)]), temperature=0.5, top_k=2).all()
    assert indices.shape == (2, 1, 4) and labels is None
    with pytest.raises(ValueError, match="labels is 0; want None: the prior has no classes"):
        sample(run, [prior], SampleRequest(2, [(1, 4)], labels=0))


def test_finished_stages_are_not_redone(trained: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(trained.folder)
    again = train(trained, data)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in vqvae.state_dict().items())
    assert not again.training
    for part, images in reopen_parts(trained).items():
        encode(trained, vqvae, images, part=part)
    train_its_prior(trained)
    sample(trained, [prior], REQUEST, seed=4)
    assert files(trained.folder) == before


def test_half_a_file_that_was_left_behind_goes(tmp_path: Path, data: Path) -> None:
    run = Run(tmp_path, create=True)
    train(run, data, steps=1)
    before = files(run.folder)
    (tmp_path / ".vqfast-0123.tmp").write_bytes(b"half")  # of one killed while it saved
    del run
    run = Run(tmp_path)
    train(run, data, steps=1)
    assert files(run.folder) == before


def test_other_settings_are_refused(trained: Run, data: Path, vqvae: VQVAE, prior: CausalPrior) -> None:
    before = files(trained.folder)
    images = reopen_parts(trained)

    def draw(seed: int = 4, **changes: Any) -> None:
        sample(trained, [prior], replace(REQUEST, **changes), seed=seed)

    def train_residual() -> None:
        options = {"channels": 8, "num_layers": 2}
        train_its_prior(trained, prior="residual", prior_options=options, use_labels=False)

    for message, call in (
        ("vqvae with other settings: lr was 0.001, now 0.01; use", lambda: train(trained, data, lr=0.01)),
        ("settings: model was 'paper', now 'keras'", lambda: train(trained, data, model="keras")),
        ("settings: data.val was 0.25, now 0.5", lambda: train(trained, data, val=0.5)),
        ("data.size was None, now 4", lambda: train(trained, data, size=4)),
        (
            "codes/train with other settings: data was .*, now .*, num was 45, now 15",
            lambda: encode(trained, vqvae, images["held-out"], part="train"),
        ),
        (
            "settings: head_channels was 8, now None, num_classes was 3, now None, prior was 'gated', ",
            train_residual,
        ),
        ("samples with other settings: seed was 4, now 5", lambda: draw(seed=5)),
        ("samples with other settings: labels was 'in turn', now 0; use", lambda: draw(note={"labels": 0})),
        ("samples with other settings: .*num was 21, now 20", lambda: draw(num=20)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert files(trained.folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nonsense"}, "model is 'nonsense'; want 'paper', "),
        ({"model_options": {"num_embeddings": 0}}, "num_embeddings is 0"),
        (
            {"model_options": {"num_downsamplings": 3}},
            r"spatial is \(8, 12\); want .* multiples of the stride 8",
        ),
        ({"seed": -1}, r"seed is -1; want an integer in 0\.\.4294967295"),
        ({"seed": 2**32}, r"seed is 4294967296; want an integer in 0\.\."),
        ({"steps": 0}, "steps is 0"),
        ({"model_options": {"kmeans_init": "x"}}, "kmeans_init is 'x'; want True or False"),
    ],
)
def test_bad_arguments_leave_the_folder_free(
    tmp_path: Path, data: Path, options: dict[str, Any], message: str
) -> None:
    run = Run(tmp_path, create=True)
    with pytest.raises((TypeError, ValueError), match=message):
        train(run, data, **options)
    assert {Path(name).name for name in files(tmp_path)} <= {"run.json"}
    train(run, data, steps=1)  # with others it goes on


def test_bad_priors(trained: Run) -> None:
    with pytest.raises(ValueError, match="prior is 'wavenet'; want 'gated', 'residual' or 'snail'"):
        train_its_prior(trained, prior="wavenet")
    with pytest.raises(ValueError, match="prior_options has nonsense; want options of the gated prior"):
        train_its_prior(trained, prior_options={**PRIOR, "nonsense": 1})
    with pytest.raises(ValueError, match="seed is -1"):
        train_its_prior(trained, seed=-1)


@pytest.mark.parametrize(("num", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_requests(num: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"num is .*; want a positive integer"):
        SampleRequest(num, [(2, 3)])


def test_seeded(trained: Run, data: Path, tmp_path: Path) -> None:
    digests = {}
    for name, seed in (("same", 0), ("other", 1)):
        again = Run(tmp_path / name, create=True)
        train(again, data, seed=seed)
        digests[name] = hashlib.sha256((again.folder / "vqvae.safetensors").read_bytes()).digest()
    original = hashlib.sha256((trained.folder / "vqvae.safetensors").read_bytes()).digest()
    assert digests["same"] == original != digests["other"]
