"""What a VQ-VAE learns: the loss of each architecture's source, and models of several levels in a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pipeline.trained import TRAINING
from vqfast.data import load_images
from vqfast.functional import perplexity
from vqfast.models import VQVAE, HierarchicalVQVAE
from vqfast.pipeline import Run, Training, load_model, train_vqvae
from vqfast.pipeline.loop import Share
from vqfast.pipeline.ranks import ALONE
from vqfast.pipeline.vqvae_task import vqvae_task
from vqfast.saving.storage import read_json

SMALL: dict[str, dict[str, Any]] = {
    "paper": {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4},
    "keras": {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4},
    "ruseckas": {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4, "num_downsamplings": 2},
    "vqvae2": {
        "hidden_channels": 8,
        "residual_channels": 4,
        "num_embeddings": 8,
        "embedding_dim": 4,
        "num_downsamplings": 1,
    },
    "ruseckas-hierarchical": {"hidden_channels": 32, "num_embeddings": 8, "num_levels": 2},
}
DIGITS = load_images("digits", size=8)


def scaled(x: Tensor, y: Tensor) -> Tensor:
    every = DIGITS.batch(range(0, len(DIGITS), 2))
    return F.mse_loss(x, y) / every.double().var(correction=0).item()


def light(x: Tensor, y: Tensor) -> Tensor:
    return scaled(x, y) / 16


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("paper", light),
        ("keras", scaled),
        ("ruseckas", F.mse_loss),
        ("vqvae2", F.mse_loss),
        ("ruseckas-hierarchical", F.l1_loss),
    ],
)
def test_the_loss_is_the_sources(name: str, error: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 8} if name == "ruseckas-hierarchical" else {}
    kind = VQVAE if name in VQVAE.CONFIGS else HierarchicalVQVAE
    model: Any = kind.named(name, in_channels=1, **SMALL[name], **sizes)
    twin = copy.deepcopy(model)
    task = vqvae_task(model, DIGITS, ALONE)
    x = DIGITS.batch([3, 1, 4, 1, 5])
    assert torch.equal(task.batch(Share(0, torch.tensor([3, 1, 4, 1, 5]), torch.zeros(5, 3))), x)
    torch.manual_seed(1)  # of the start by k-means
    figures = task.metrics(0, x)
    torch.manual_seed(1)
    out = twin(x)
    torch.testing.assert_close(figures["loss"], error(out.reconstruction, x) + out.loss)
    torch.testing.assert_close(figures["mse"], F.mse_loss(out.reconstruction, x))
    levels = [out.indices] if isinstance(out.indices, Tensor) else out.indices
    for level, indices in enumerate(levels):
        ending = f"-{level}" if level else ""
        torch.testing.assert_close(figures[f"perplexity{ending}"], perplexity(indices, 8))
        assert set(indices.flatten().tolist()) == set(
            task.used[f"dead_codes{ending}"].nonzero().flatten().tolist()
        )
    assert len(figures) == 2 + len(levels) and len(task.used) == len(levels)


@pytest.mark.parametrize("name", ["vqvae2", "ruseckas-hierarchical"])
def test_a_model_of_several_levels_is_trained_in_a_run(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    training = Training(**{**TRAINING, "val_every": 10})
    model = train_vqvae(
        run, "digits", reading={"size": 8}, model=name, model_options=SMALL[name], training=training
    )
    assert isinstance(load_model(run.folder, "vqvae"), HierarchicalVQVAE)
    assert [shape[0] for shape in model.code_shapes((8, 8))] == ([2, 4] if name == "vqvae2" else [4, 8])
    history = read_json(run.folder / "vqvae.history.json")
    assert {"perplexity", "perplexity-1", "dead_codes", "dead_codes-1", "held_out_mse"} < history.keys()
    assert history["loss"][-1] < history["loss"][0]
