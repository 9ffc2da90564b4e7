"""What the trainings of a run have in common: their length, their settings, and that each happens once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqfast.checks import check_integer, check_number
from vqfast.files import write_file
from vqfast.models import Autoencoder
from vqfast.pipeline.checkpoint import save_model
from vqfast.pipeline.curves import draw_curves
from vqfast.pipeline.logs import log_to
from vqfast.pipeline.loop import reopen
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.storage import read_json, read_tensors, write_json
from vqfast.pipeline.validation import History
from vqfast.priors.base import CausalPrior

STEPS = 10_000  # of a training, unless steps or epochs says otherwise


def check_seed(seed: int) -> None:
    check_integer("seed", seed, 0, 2**32 - 1)  # torch's generator would look at the low 32 bits only


def num_steps(steps: int | None, epochs: float | None, num: int, batch_size: int) -> int:
    """How many steps of ``batch_size`` a training on ``num`` items has."""
    if epochs is not None:
        check_number("epochs", epochs, above=0)
        check_integer("batch_size", batch_size)
        if steps is not None:
            raise ValueError("steps and epochs exclude each other; want one of them")
        return math.ceil(epochs * num / batch_size)
    steps = STEPS if steps is None else steps
    check_integer("steps", steps)
    return steps


def validating(val_every: int | None, patience: int | None) -> dict[str, int]:
    """The settings of the validation that are given."""
    check_integer("val_every", val_every, optional=True)
    check_integer("patience", patience, optional=True)
    if patience is not None and val_every is None:
        raise ValueError("patience goes with val_every")
    given = {"val_every": val_every, "patience": patience}
    return {name: value for name, value in given.items() if value is not None}


def begin_training(run: Run, name: str, settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Notes the settings of a training; one that is finished goes on where ``steps`` is raised."""
    weights = run.folder / f"{name}.safetensors"
    if ranks.first and weights.is_file() and run.is_raised(name, settings, "steps"):
        if name == "vqvae" and any((run.folder / "codes").glob("*")):
            holds = f"{run.folder} holds codes of the VQ-VAE that was to go on"
            raise ValueError(f"{holds}: remove codes/, or use another folder")
        history = read_json(run.folder / f"{name}.history.json")
        reopen(run.folder / f"{name}.state.safetensors", read_tensors(weights), history)
        weights.unlink()  # its presence would say that the longer training is done
    run.begin(name, settings, growing="steps", ranks=ranks)


def train_once(
    run: Run,
    name: str,
    model: Autoencoder | CausalPrior,
    ranks: Ranks,
    train: Callable[..., History],
    tensorboard: str | Path | None,
) -> None:
    """Trains and saves a model, unless its weights are in the run."""
    state = run.folder / f"{name}.state.safetensors"
    if not (run.folder / f"{name}.safetensors").is_file():
        model.to(ranks.device)
        board = tensorboard if ranks.first else None
        history = train(state=state, ranks=ranks, log=log_to(run.folder, name, board))
        if ranks.first:
            write_json(run.folder / f"{name}.history.json", history)
            write_file(run.folder / f"{name}.png", draw_curves(history, title=name))
            save_model(run.folder, name, model)  # last: its presence says that the stage is done
    if ranks.first:
        state.unlink(missing_ok=True)
    ranks.barrier()
