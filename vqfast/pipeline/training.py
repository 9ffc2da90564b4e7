"""What the trainings of a run have in common: their settings, and that each happens once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vqfast.files import write_file
from vqfast.models import Autoencoder, Classifier
from vqfast.pipeline.checkpoint import save_model
from vqfast.pipeline.curves import draw_curves
from vqfast.pipeline.levels import Prior
from vqfast.pipeline.logs import log_to
from vqfast.pipeline.loop import Task, fit
from vqfast.pipeline.options import Training
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.times import Clock
from vqfast.pipeline.validation import History, Validation, measured
from vqfast.saving.storage import read_json, write_json

GROWING = ("steps", "patience")  # settings of which a finished training may be given more


def begin_training(run: Run, name: str, settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Notes the settings of a training; one that is finished goes on where ``GROWING`` ones are raised.

    Raises:
        ValueError: the warm-up is as long as the training; the run has other settings; or the training can't
            go on: its state was removed, codes of the model are there, or its patience, which isn't raised,
            has ended it.
    """
    warmup, steps = settings["warmup"], settings["steps"]
    if warmup >= steps:
        raise ValueError(f"warmup is {warmup}; want below {steps}, the steps, to reach the learning rate lr")
    weights = run.folder / f"{name}.safetensors"
    if ranks.first and weights.is_file() and run.is_raised(name, settings, GROWING):
        history, before = read_json(run.folder / f"{name}.history.json"), run.settings(name) or {}
        last, patience = int(measured(history["step"])[-1]) + 1, settings.get("patience")
        if last < before["steps"] and patience is not None and patience == before.get("patience"):
            ended = f"ended the {name} after {last} steps of {before['steps']}"
            raise ValueError(f"patience is {patience}, which {ended}; want more patience to go on")
        if name == "vqvae" and any((run.folder / "codes").glob("*")):
            holds = f"{run.folder} holds codes of the VQ-VAE that was to go on"
            raise ValueError(f"{holds}: remove codes/, or use another folder")
        state = run.folder / f"{name}.state.safetensors"
        if not state.is_file():
            raise ValueError(f"{state}, from which the {name} was to go on, was removed; use another folder")
        weights.unlink()  # its presence would say that the longer training is done
    run.begin(name, settings, growing=GROWING, ranks=ranks)


def train_once(
    run: Run,
    name: str,
    model: Autoencoder | Prior | Classifier,
    make_task: Callable[[], Task],
    training: Training,
    *,
    validation: Validation | None,
    ranks: Ranks,
) -> None:
    """Trains and saves a model, unless its weights are in the run. The state stays, for more steps later."""
    state = run.folder / f"{name}.state.safetensors"
    if not (run.folder / f"{name}.safetensors").is_file():
        write_curves = log_to(run.folder, name, training.tensorboard if ranks.first else None)
        clock = Clock(run.folder, name, anew=not state.is_file())

        def log(history: History) -> None:
            write_curves(history)
            clock.note()

        history = fit(model, make_task(), training, file=state, ranks=ranks, validation=validation, log=log)
        if ranks.first:
            write_json(run.folder / f"{name}.history.json", history)
            write_file(run.folder / f"{name}.png", draw_curves(history, title=name))
            save_model(run.folder, name, model)  # last: its presence says that the stage is done
    ranks.barrier()
