"""A small run that has gone through all steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vqfast.models import VQVAE
from vqfast.pipeline import PriorTraining, Run, SampleRequest, Training, train_priors, train_vqvae
from vqfast.priors.base import CausalPrior

MODEL = {"hidden_channels": 8, "num_embeddings": 8, "embedding_dim": 4}
TRAINING: dict[str, Any] = {"steps": 12, "batch_size": 8, "lr": 1e-3, "seed": 0}
PRIOR = {"channels": 8, "num_layers": 2, "head_channels": 8}
REQUEST = SampleRequest(
    21,
    [(2, 3)],
    labels=lambda numbers: torch.arange(numbers.start, numbers.stop) % 3,
    note={"labels": "in turn"},
)


def train(
    run: Run,
    data: Path,
    *,
    labels: bool = True,
    size: int | None = None,
    val: float | Path = 0.25,
    model: str = "paper",
    model_options: Mapping[str, Any] | None = None,
    **training: Any,
) -> VQVAE:
    """A VQ-VAE trained on ``x.npy`` and ``y.npy`` in the folder ``data``."""
    return train_vqvae(
        run,
        data / "x.npy",
        reading={"labels": data / "y.npy" if labels else None, "size": size},
        val=val,
        model=model,
        model_options={**MODEL, **(model_options or {})},
        training=Training(**{**TRAINING, **training}),
    )


def train_its_prior(
    run: Run,
    *,
    prior: str = "gated",
    prior_options: Mapping[str, Any] = PRIOR,
    use_labels: bool = True,
    **training: Any,
) -> CausalPrior:
    """A prior trained on a run's codes."""
    (trained,) = train_priors(
        run,
        prior=prior,
        prior_options=prior_options,
        use_labels=use_labels,
        training=PriorTraining(**{**TRAINING, **training}),
    )
    return trained


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and contents of all files."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in found
        if path.name not in (".lock", "times.json")
    }
