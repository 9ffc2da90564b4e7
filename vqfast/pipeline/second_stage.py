"""Codes of codes: a second VQ-VAE is trained over the codes of a run, in a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch

from vqfast.checks import check_choice
from vqfast.models import CONFIGS, VQVAE, SecondStage
from vqfast.pipeline.checkpoint import check_rebuildable, load_model
from vqfast.pipeline.coding import weights_digest
from vqfast.pipeline.measures import measure_reconstruction
from vqfast.pipeline.options import Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, noted_data, open_parts
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of
from vqfast.pipeline.vqvae_task import vqvae_task

TRAINING = Training()


def train_second_stage(
    run: Run,
    first: Run,
    *,
    model: str = "paper",
    model_options: Mapping[str, Any] | None = None,
    training: Training = TRAINING,
    ranks: Ranks = ALONE,
) -> SecondStage:
    """Trains a VQ-VAE over the code vectors of a trained run, on the data of that run.

    The new run has a model of one level more, ``SecondStage``, which holds both models. All further steps
    work on it as on any model of several levels.

    Args:
        run: the new run.
        first: a run with a trained model, which is copied.
        model: the configuration of the second model, one that ``VQVAE.named`` knows.
        model_options: arguments of ``VQVAE`` that replace those of the configuration.
        training: how it is trained. The held-out figure that is compared is the squared error of what is
            decoded from the second codes alone.
        ranks: the processes that work together.

    Returns:
        The trained model, in eval mode. It lies in ``vqvae.safetensors``, its curves in ``vqvae.png`` and
        ``vqvae.csv``.

    Raises:
        FileNotFoundError: ``first`` isn't trained.
        TypeError, ValueError: an argument is of the wrong type or out of range, the grids of codes don't fit
            the model, the data has changed, or the run was begun with other settings.
    """
    check_choice("model", model, CONFIGS)
    note = noted_data(first)
    trained = load_model(first.folder, "vqvae")
    parts, found = open_parts(run, note, ranks)
    options = dict(model_options or {})
    torch.manual_seed(training.seed)
    sizes = {"in_channels": cast(VQVAE, trained).quantizers[0].embedding_dim, "ndim": trained.ndim}
    vqvae = SecondStage(trained, VQVAE.named(model, **sizes, **options)).to(ranks.device)
    check_rebuildable(vqvae)
    vqvae.code_shapes(parts[TRAIN].shape[1:])
    settings = {"data": note, "first": weights_digest(first, "vqvae"), "model": model, **options}
    begin_training(run, "vqvae", settings | training.settings(len(parts[TRAIN])), ranks)
    run.begin("data", found, ranks=ranks)

    def measure() -> dict[str, float]:
        figures = measure_reconstruction(vqvae, parts[HELD_OUT], levels=1, ranks=ranks)
        return {f"held_out_{name}": value for name, value in figures.items()}

    validation = validation_of(training, "held_out_mse", measure)
    make_task = partial(vqvae_task, vqvae, parts[TRAIN], ranks)
    train_once(run, "vqvae", vqvae, make_task, training, validation=validation, ranks=ranks)
    return cast(SecondStage, load_model(run.folder, "vqvae", device=ranks.device))
