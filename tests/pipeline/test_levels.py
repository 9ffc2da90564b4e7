"""Models with several levels of codes, through the steps of the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.pipeline.trained import train
from vqfast.models import HierarchicalVQVAE
from vqfast.pipeline import (
    Ranks,
    Run,
    decode,
    encode,
    load_model,
    measure_reconstruction,
    open_codes,
    reopen_parts,
    save_model,
    stage_codes,
)
from vqfast.pipeline.coding import decoded
from vqfast.pipeline.shards import write_shards


@pytest.fixture(scope="module")
def coded(data: Path) -> Run:
    """A run whose model has two levels, and whose images are encoded."""
    run = Run(data / "levels", create=True)
    train(run, data, steps=1)
    torch.manual_seed(0)
    small = {"hidden_channels": 8, "residual_channels": 4, "embedding_dim": 4, "num_downsamplings": 1}
    model = HierarchicalVQVAE(in_channels=1, num_embeddings=300, **small)
    save_model(run.folder, "vqvae", model)
    for part, images in reopen_parts(run).items():
        encode(run, load_model(run.folder, "vqvae"), images, part=part)
    return run


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
