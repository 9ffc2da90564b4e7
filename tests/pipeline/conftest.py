from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.trained import REQUEST, train, train_its_prior
from vqfast.models import VQVAE
from vqfast.pipeline import Run, encode, load_model, reopen_parts, sample, shards
from vqfast.priors.base import CausalPrior


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.integers(0, 256, (60, 8, 12), dtype=np.uint8))
    np.save(folder / "y.npy", np.arange(60) % 3)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Run:
    """A run with all stages done."""
    run = Run(data / "run", create=True)
    vqvae = train(run, data)
    for part, images in reopen_parts(run).items():
        encode(run, vqvae, images, part=part)
    prior = train_its_prior(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        sample(run, [prior], REQUEST, seed=4)
    return run


@pytest.fixture(scope="module")
def vqvae(trained: Run) -> VQVAE:
    return load_model(trained.folder, "vqvae")


@pytest.fixture(scope="module")
def prior(trained: Run) -> CausalPrior:
    return load_model(trained.folder, "prior")
