"""The priors of a run, one for each level."""

from __future__ import annotations

from typing import cast

import torch

from vqfast.models import Autoencoder, HierarchicalVQVAE, LevelPrior
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.levels import AnyPrior, Prior, level_name, level_of
from vqfast.pipeline.run import Run


def load_prior(run: Run, level: int, *, device: torch.device | str = "cpu") -> Prior:
    """The trained prior of a level.

    Raises:
        FileNotFoundError: it isn't trained.
        ValueError: see ``load_model``; or the file has the prior of another level.
    """
    name = level_name("prior", level)
    prior = cast(Prior, load_model(run.folder, name, device=device))
    if level_of(prior) != level:
        raise ValueError(f"{run.folder / name} is the prior of level {level_of(prior)}; want {level}")
    return prior


def load_priors(run: Run, vqvae: Autoencoder, *, device: torch.device | str = "cpu") -> list[AnyPrior]:
    """The priors of all levels, from the coarsest: those trained in the run.

    A run without trained priors has those of its model, if the levels have some of their own.

    Args:
        vqvae: the run's.

    Raises:
        FileNotFoundError, ValueError: see ``load_prior``.
    """
    trained = (run.folder / f"{level_name('prior', 0)}.safetensors").is_file()
    if not trained and isinstance(vqvae, HierarchicalVQVAE) and vqvae.has_priors:
        return [LevelPrior(vqvae, level) for level in range(len(vqvae.codebook_sizes))]
    levels = range(len(vqvae.codebook_sizes))
    for level in levels if len(levels) > 1 else ():
        file = run.folder / f"{level_name('prior', level)}.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"level {level} has no prior, {file} is missing: train the prior first")
    return [load_prior(run, level, device=device) for level in levels]
