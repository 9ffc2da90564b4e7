"""Models with several levels of codes, through the steps of the pipeline."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.trained import PRIOR, TRAINING, files, train
from vqfast.pipeline import (
    Completion,
    PriorTraining,
    Ranks,
    Run,
    SampleRequest,
    bits_per_code,
    decode,
    encode,
    load_model,
    load_priors,
    measure_reconstruction,
    modality_of,
    open_codes,
    reopen_parts,
    sample,
    shards,
    stage_codes,
    train_priors,
)
from vqfast.pipeline.coding import decoded
from vqfast.pipeline.levels import Prior
from vqfast.pipeline.shards import write_shards


@pytest.fixture(scope="module")
def coded(data: Path) -> Run:
    """A run whose model has two levels, and whose images are encoded."""
    run = Run(data / "levels", create=True)
    small = {"residual_channels": 4, "num_embeddings": 300, "num_downsamplings": 1}
    model = train(run, data, model="vqvae2", model_options=small, steps=2)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    return run


SHAPES = [(2, 3), (4, 6)]


def train_its_priors(run: Run, **changes: Any) -> list[Prior]:
    settings: dict[str, Any] = {"prior_options": PRIOR, "condition_channels": 8, "condition_blocks": 1}
    return train_priors(run, **settings | {"training": PriorTraining(**TRAINING)} | changes)


@pytest.fixture(scope="module")
def priors(coded: Run) -> list[Prior]:
    return train_its_priors(coded)


def test_codes_are_a_grid_for_each_level(coded: Run) -> None:
    model, images = load_model(coded.folder, "vqvae"), reopen_parts(coded)["held-out"]
    codes = stage_codes(coded, "codes/held-out")
    (top, bottom), labels = codes.all()
    expected = model.encode_levels(images.batch(range(15)))
    assert torch.equal(top, expected[0]) and torch.equal(bottom, expected[1])
    assert top.shape == (15, 2, 3) and bottom.shape == (15, 4, 6) and labels.tolist() == list(images.labels)
    assert torch.equal(codes.read(range(3, 7))[0][1], bottom[3:7])
    with np.load(coded.folder / "codes" / "held-out" / "00000.npz") as shard:
        assert shard.files == ["indices", "indices-1", "labels"] and shard["indices-1"].dtype == np.uint16


def test_codes_of_several_levels_are_decoded(coded: Run, tmp_path: Path) -> None:
    model, out = load_model(coded.folder, "vqvae"), Run(tmp_path, create=True)
    codes = open_codes(coded.folder / "codes" / "held-out")
    decode(coded, model, codes, format="npy", out=out)
    expected = model.decode_levels(codes.all()[0]).detach().clamp(0, 1)
    np.testing.assert_allclose(np.load(*(tmp_path / "npy").iterdir()), expected * 255, atol=0.51)
    assert torch.equal(torch.cat(list(decoded(model, codes, range(15)))), expected)


def test_figures_of_each_level(coded: Run) -> None:
    model, images = load_model(coded.folder, "vqvae"), reopen_parts(coded)["held-out"]
    figures = measure_reconstruction(model, images)
    x = images.batch(range(15))
    levels = model.encode_levels(x)
    mse = F.mse_loss(model.decode_levels(levels).clamp(0, 1), x).item()
    assert figures["mse"] == pytest.approx(mse, rel=1e-5)
    top = F.mse_loss(model.decode_levels(levels[:1]).clamp(0, 1), x).item()
    assert measure_reconstruction(model, images, levels=1)["mse"] == pytest.approx(top, rel=1e-5)
    for indices, name in zip(levels, ("codes_in_use", "codes_in_use-1"), strict=True):
        assert figures[name] == pytest.approx(len(indices.unique()) / 300)
    assert list(figures) == ["mse", "psnr", "perplexity", "codes_in_use", "perplexity-1", "codes_in_use-1"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"indices-1": (3, 2)},
        {"indices": (3, 2), "indices-2": (3, 2)},
        {"indices": (3,)},
        {"indices": (3, 2), "labels": (3, 1)},
        {"labels": (3,)},
    ],
)
def test_arrays_that_are_no_levels(tmp_path: Path, arrays: dict[str, tuple[int, ...]]) -> None:
    run = Run(tmp_path, create=True)
    run.begin("samples", {"num": 3})
    shard = {name: np.zeros(shape, int) for name, shape in arrays.items()}
    write_shards(tmp_path / "samples", 3, Ranks(), label="", item="", make=lambda numbers, _: shard)
    with pytest.raises(ValueError, match=r"want indices \(N, \*shape\), indices-1 and so on"):
        stage_codes(run, "samples").all()


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_grids_of_one_and_of_three_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    indices = np.arange(5 * np.prod(shape)).reshape(5, *shape) % 9
    np.save(tmp_path / "codes.npy", indices)
    (found,), _ = open_codes(tmp_path / "codes.npy").all()
    assert found.tolist() == indices.tolist()


def test_a_prior_for_each_level(coded: Run, priors: list[Prior], tmp_path: Path) -> None:
    kinds = [type(prior).__name__ for prior in priors]
    assert kinds == ["PixelCNN", "ConditionedPrior"] and [p.num_classes for p in priors] == [3, 3]
    names = {Path(name).name for name in files(coded.folder)}
    assert {
        f"{name}.{kind}" for name in ("prior", "prior-1") for kind in ("safetensors", "png", "csv")
    } <= names
    before = files(coded.folder)
    again = train_its_priors(coded, level=1)  # which is trained
    assert len(again) == 1 and files(coded.folder) == before
    with pytest.raises(ValueError, match=r"prior-1 with other settings: condition_channels was 8, now 4"):
        train_its_priors(coded, level=1, condition_channels=4)
    with pytest.raises(ValueError, match=r"level is 2; want an integer in 0\.\.1"):
        train_its_priors(coded, level=2)
    with pytest.raises(ValueError, match="prior_options has condition_channels"):
        train_its_priors(coded, prior_options={"condition_channels": 3})
    assert [p.num_embeddings for p in load_priors(coded, load_model(coded.folder, "vqvae"))] == [300, 300]
    shutil.copytree(coded.folder, tmp_path / "run")
    for kind in ("safetensors", "config.json"):
        (tmp_path / "run" / f"prior.{kind}").replace(tmp_path / "run" / f"prior-1.{kind}")
        shutil.copy(coded.folder / f"prior.{kind}", tmp_path / "run")
    with pytest.raises(ValueError, match="prior-1 is the prior of level 0; want 1"):
        load_priors(Run(tmp_path / "run"), load_model(coded.folder, "vqvae"))


def test_levels_are_sampled_one_after_the_other(coded: Run, priors: list[Prior], tmp_path: Path) -> None:
    """The codes don't depend on the shards; each level has random numbers of its own."""
    top_prior, bottom_prior = priors
    request, out = SampleRequest(13, SHAPES), Run(tmp_path / "a", create=True)
    (top, bottom), labels = sample(coded, priors, request, out=out, seed=4).all()
    assert labels.tolist() == [i % 3 for i in range(13)]
    assert torch.equal(top, top_prior.sample(13, SHAPES[0], labels=labels, seed=4))
    seed = int(np.random.SeedSequence([4, 1]).generate_state(1, np.uint64)[0])
    expected = bottom_prior.sample(13, SHAPES[1], labels=labels, seed=seed, coarser=[top])
    assert torch.equal(bottom, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 4)
        other = Run(tmp_path / "b", create=True)
        sample(coded, priors, request, out=other, seed=4)
        (tmp_path / "b" / "samples" / "00001.npz").unlink()  # as if it was killed before
        (top4, bottom4), _ = sample(coded, priors, request, out=other, seed=4).all()
    assert torch.equal(top4, top) and torch.equal(bottom4, bottom)
    with pytest.raises(ValueError, match="shapes has 1 levels; want 2, as many as priors"):
        sample(coded, priors, SampleRequest(2, SHAPES[:1]), out=out)


@torch.no_grad()
def test_bits_of_each_level(coded: Run, priors: list[Prior]) -> None:
    codes = stage_codes(coded, "codes/held-out")
    (top, bottom), labels = codes.all()
    bits = bits_per_code(priors, codes)
    assert bits.shape == (15, 2)
    for column, indices, logits in (
        (0, top, priors[0](top, labels)),
        (1, bottom, priors[1](bottom, labels, coarser=[top])),
    ):
        p = logits.softmax(1).gather(1, indices.unsqueeze(1))
        np.testing.assert_allclose(bits[:, column], -p.log2().flatten(1).mean(1), rtol=1e-5)
    assert torch.equal(bits_per_code(priors[1:], codes)[:, 0], bits[:, 1])
    with pytest.raises(ValueError, match="the codes have 1 levels; want 2"):
        bits_per_code(
            priors, replace(codes, read=lambda numbers: ([top[numbers.start : numbers.stop]], None))
        )


def test_completions_keep_the_same_part_of_each_level(
    coded: Run, priors: list[Prior], tmp_path: Path
) -> None:
    model, images = load_model(coded.folder, "vqvae"), reopen_parts(coded)["held-out"]
    completion = Completion(model, images, modality_of(coded), keep="left-0.4", draws=2)
    out = Run(tmp_path, create=True)
    (top, bottom), _ = sample(coded, priors, completion.request(priors, num=8), out=out).all()
    originals = model.encode_levels(images.batch(range(4)))
    assert torch.equal(top[::2, :, :1], originals[0][:, :, :1])  # one column of three
    assert torch.equal(bottom[1::2, :, :2], originals[1][:, :, :2])  # the same third: two columns of six
    assert (bottom[::2, :, 2:] != originals[1][:, :, 2:]).any()
    assert completion.picture(stage_codes(out, "samples")).startswith(b"\x89PNG")
