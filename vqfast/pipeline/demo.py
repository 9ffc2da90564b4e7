"""The whole pipeline on real handwritten digits, with its quality measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Dataset
from vqfast.data.images.sheet import grid, show_codes, show_pairs
from vqfast.files import write_file
from vqfast.pipeline.codes import stage_codes
from vqfast.pipeline.coding import decoded, encode
from vqfast.pipeline.measures import bits_per_code, measure_reconstruction
from vqfast.pipeline.options import PriorTraining, Training
from vqfast.pipeline.pages import write_report
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_parts
from vqfast.pipeline.prior_training import train_priors
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.sampling import SampleRequest, classes_of, sample
from vqfast.pipeline.vqvae_training import train_vqvae
from vqfast.priors.base import CausalPrior
from vqfast.saving.storage import read_json, write_json

VQVAE = {"hidden_channels": 64, "num_embeddings": 64, "embedding_dim": 16, "decay": 0.95}
VQVAE_TRAINING = Training(steps=1200, batch_size=32, lr=1e-3, schedule="cosine")
PRIOR = {"channels": 64, "num_layers": 6, "first_kernel_size": 5, "head_channels": 128, "dropout": 0.1}
PRIOR_TRAINING = PriorTraining(steps=2800, batch_size=24, lr=2e-3, ema=0.998)
SHIFT = 1  # pixels by which the prior's training images are moved in each direction: nine of each image
SAMPLES_PER_CLASS = 100
VAL = 0.2
COLUMNS = 12  # of the pictures


class Classifier(Protocol):
    """A classifier of flat images, as scikit-learn makes them."""

    def predict(self, images: np.ndarray) -> np.ndarray: ...


class Shifted:
    """Images moved by up to ``SHIFT`` pixels: the prior's training set, nine times as large."""

    def __init__(self, images: Dataset) -> None:
        self.images, self.shape, self.num_classes = images, images.shape, images.num_classes
        self.corners = list(product(range(2 * SHIFT + 1), repeat=2))
        self.labels = None if images.labels is None else np.tile(images.labels, len(self.corners))
        self.fingerprint = f"{images.fingerprint} shifted by {SHIFT}"

    def __len__(self) -> int:
        return len(self.images) * len(self.corners)

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images of these numbers: see ``Dataset.batch``."""
        moves, own = np.divmod(np.asarray(numbers), len(self.images))
        height, width = self.shape[1:]
        padded = F.pad(self.images.batch(own), (SHIFT, SHIFT, SHIFT, SHIFT))
        corners = [self.corners[move] for move in moves]
        return torch.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, (top, left) in zip(padded, corners, strict=True)
            ]
        )


def run_demo(folder: str | Path, ranks: Ranks, *, seed: int = 0, steps_scale: float = 1.0) -> dict[str, Any]:
    """Trains on digits and draws new ones, in ``folder``.

    Args:
        ranks: the processes that work together.
        seed: of all that is random.
        steps_scale: multiplies the steps of training, for a quick look.

    Returns:
        The figures that ``metrics.json`` holds; none on other processes than the first.

    Raises:
        ValueError: the folder holds something else, or a demo with other settings.
    """
    began = time.monotonic()

    def scaled(training: Training) -> dict[str, Any]:
        steps = max(1, round((training.steps or 0) * steps_scale))
        return {"training": replace(training, steps=steps, seed=seed), "ranks": ranks}

    run = Run.shared(folder, ranks, create=True)
    vqvae = train_vqvae(run, "digits", val=VAL, model_options=VQVAE, **scaled(VQVAE_TRAINING))
    parts = reopen_parts(run)
    train, held_out = parts[TRAIN], parts[HELD_OUT]
    encode(run, vqvae, Shifted(train), part=TRAIN, ranks=ranks)
    encode(run, vqvae, held_out, part=HELD_OUT, ranks=ranks)
    priors = train_priors(run, prior_options=PRIOR, **scaled(PRIOR_TRAINING))
    classes = classes_of(priors) or 0
    labels = torch.arange(classes).repeat_interleave(SAMPLES_PER_CLASS)
    request = SampleRequest(
        len(labels),
        vqvae.code_shapes(train.shape[1:]),
        labels=lambda numbers: labels[numbers.start : numbers.stop],
        note={"labels": f"{SAMPLES_PER_CLASS} of each class"},
    )
    samples = sample(run, priors, request, seed=seed, ranks=ranks)
    if not ranks.first:
        return {}
    if (run.folder / "timings.json").is_file():  # the last of the files
        return dict(read_json(run.folder / "metrics.json"))

    alone = Ranks(device=ranks.device)
    train_codes, held_out_codes = (stage_codes(run, f"codes/{part}") for part in (TRAIN, HELD_OUT))
    generated = torch.cat(list(decoded(vqvae, samples, range(samples.num), alone)))
    classifier = fit_classifier(Shifted(train))  # new digits are shifted too: the prior learns from such
    metrics = {
        "classifier_accuracy_on_held_out_digits": accuracy(classifier, all_of(held_out), held_out.labels),
        "classifier_agrees_with_requested_label": accuracy(classifier, generated, labels.numpy()),
        "generated": len(generated),
        "reconstruction_held_out": measure_reconstruction(vqvae, held_out, ranks=alone),
        "codes_in_use": len(np.unique(train_codes.all()[0][0])) / vqvae.codebook_sizes[0],
        "prior_bits_per_code": {
            "train": bits_per_code(priors, train_codes, ranks=alone).mean().item(),
            "held_out": bits_per_code(priors, held_out_codes, ranks=alone).mean().item(),
        },
    }
    shown = range(2 * COLUMNS)
    originals, ((indices,), _) = held_out.batch(shown), held_out_codes.read(shown)
    reconstructions = torch.cat(list(decoded(vqvae, held_out_codes, shown, alone)))
    maps = show_codes(indices, vqvae.codebook_sizes[0], originals=originals, columns=COLUMNS)
    drawn = generated.view(classes, SAMPLES_PER_CLASS, *train.shape)[:, :COLUMNS].flatten(0, 1)
    digits = grid(drawn, columns=COLUMNS, captions=[str(label) for label in range(classes)])
    write_file(run.folder / "reconstructions.png", show_pairs(originals, reconstructions, columns=COLUMNS))
    write_file(run.folder / "code_maps.png", maps)
    write_file(run.folder / "samples.png", digits)
    write_report(run, ranks)
    write_json(run.folder / "metrics.json", metrics)
    timings = {**race(cast(CausalPrior, priors[0]), request.shapes[0]), "seconds": time.monotonic() - began}
    write_json(run.folder / "timings.json", timings)
    return metrics


def all_of(dataset: Dataset) -> Tensor:
    """All items ``(N, C, H, W)``."""
    return dataset.batch(range(len(dataset)))


def fit_classifier(dataset: Dataset) -> Classifier:
    """A support-vector classifier of real images: the judge of generated ones."""
    from sklearn.svm import SVC

    classifier: Classifier = SVC(C=10).fit(all_of(dataset).flatten(1).numpy(), dataset.labels)
    return classifier


def accuracy(classifier: Classifier, images: Tensor, labels: np.ndarray | None) -> float:
    """The share of ``images (N, C, H, W)`` that the classifier gives their ``labels (N,)``."""
    return float((classifier.predict(images.flatten(1).numpy()) == labels).mean())


def race(prior: CausalPrior, shape: tuple[int, ...], batch: int = 64) -> dict[str, float]:
    """Seconds for a batch by the naive sampler and by the cached one, and the share of codes that agree."""
    labels = torch.arange(batch) % prior.num_classes if prior.num_classes else None
    seconds, indices = {}, {}
    for method in ("torch", "reference"):
        prior.sample(batch, shape, labels=labels, method="torch")  # warms up
        began = time.perf_counter()
        indices[method] = prior.sample(batch, shape, labels=labels, method=method)
        seconds[method] = time.perf_counter() - began
    return {
        "sampled_together": batch,
        "naive_seconds": seconds["reference"],
        "cached_seconds": seconds["torch"],
        "cached_is_times_faster": seconds["reference"] / seconds["torch"],
        "codes_that_agree": float((indices["reference"] == indices["torch"]).double().mean()),
    }


def summary(folder: str | Path) -> str:
    """The figures of a finished demo, in words.

    Raises:
        ValueError: the figures in the folder are no demo's.
    """
    metrics, timings = (read_json(Path(folder) / f"{name}.json") for name in ("metrics", "timings"))
    try:
        return _in_words(folder, metrics, timings)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} has metrics.json or timings.json of something else: {error!r}") from error


def _in_words(folder: str | Path, metrics: dict[str, Any], timings: dict[str, Any]) -> str:
    bits, reconstruction = metrics["prior_bits_per_code"], metrics["reconstruction_held_out"]
    return "\n".join(
        [
            f"reconstruction of held-out digits   psnr {reconstruction['psnr']:.1f} dB, "
            f"mse {reconstruction['mse']:.5f}",
            f"codes in use                        {metrics['codes_in_use']:.0%}",
            f"prior, bits per code                {bits['train']:.2f} train, {bits['held_out']:.2f} held out",
            "classifier on held-out real digits  "
            f"{metrics['classifier_accuracy_on_held_out_digits']:.1%} right",
            f"  on {metrics['generated']} generated digits         "
            f"{metrics['classifier_agrees_with_requested_label']:.1%} as requested",
            f"sampling {timings['sampled_together']} digits                  "
            f"naive {timings['naive_seconds']:.2f} s, cached {timings['cached_seconds']:.3f} s: "
            f"{timings['cached_is_times_faster']:.0f} times faster, "
            f"{timings['codes_that_agree']:.2%} of the codes the same",
            f"pictures, figures and weights       {folder}, shown by {folder}/report.html",
        ]
    )
