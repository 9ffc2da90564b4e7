"""The whole pipeline on real handwritten digits, with its quality measured."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vqfast.data import Images
from vqfast.files import write_file
from vqfast.pipeline import images as pictures
from vqfast.pipeline import steps
from vqfast.pipeline.checkpoint import Run, read_json, write_json
from vqfast.pipeline.codes import stored
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_images
from vqfast.pipeline.ranks import Ranks
from vqfast.priors.base import CausalPrior

VQVAE = {"hidden_channels": 64, "num_embeddings": 64, "embedding_dim": 16, "decay": 0.95}
VQVAE_FIT = {"codebook": "kmeans", "steps": 600, "batch_size": 64, "lr": 1e-3}
PRIOR = {"channels": 64, "num_layers": 6, "first_kernel_size": 5, "head_channels": 128}
PRIOR_FIT = {"steps": 1500, "batch_size": 32, "lr": 2e-3}
SHIFT = 1  # pixels by which the prior's training images are moved about: nine of each
SAMPLES_PER_CLASS = 100
HOLDOUT = 0.2


class Shifted:
    """Images moved by up to ``SHIFT`` pixels: the prior's training set, nine times as large."""

    def __init__(self, images: Any) -> None:
        self.images, self.shape, self.num_classes = images, images.shape, images.num_classes
        self.corners = list(product(range(2 * SHIFT + 1), repeat=2))
        self.labels = np.tile(images.labels, len(self.corners))
        self.fingerprint = f"{images.fingerprint} shifted by {SHIFT}"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows) -> torch.Tensor:
        """As ``Images.batch``."""
        move, row = np.divmod(np.asarray(rows), len(self.images))
        height, width = self.shape[1:]
        wide = F.pad(self.images.batch(row), (SHIFT, SHIFT, SHIFT, SHIFT))
        corners = [self.corners[m] for m in move]
        cuts = [
            x[:, top : top + height, left : left + width]
            for x, (top, left) in zip(wide, corners, strict=True)
        ]
        return torch.stack(cuts)


def demo(folder: str, ranks: Ranks, seed: int = 0, steps_scale: float = 1.0) -> dict[str, Any]:
    """Digits to new digits in ``folder``; returns the figures that ``metrics.json`` holds.

    ``steps_scale`` shortens the training, for a quick look.

    Raises:
        ValueError: the folder holds something else, or a demo with other settings.
    """
    began = time.monotonic()

    def scaled(fit: dict[str, Any]) -> dict[str, Any]:
        return {**fit, "steps": max(1, round(fit["steps"] * steps_scale)), "seed": seed}

    run = Run.shared(folder, ranks, create=True)
    note = {
        "source": "digits",
        "labels": None,
        "size": None,
        "channels": None,
        "holdout": HOLDOUT,
        "seed": seed,
    }
    vqvae = steps.train_vqvae(run, note, ranks, "paper", VQVAE, scaled(VQVAE_FIT))
    parts: Any = reopen_images(run)
    train, held_out = parts[TRAIN], parts[HELD_OUT]
    shifted: Any = Shifted(train)
    steps.encode(run, run, vqvae, TRAIN, shifted, ranks)
    steps.encode(run, run, vqvae, HELD_OUT, held_out, ranks)
    classes = train.num_classes
    prior = steps.train_prior(run, vqvae.vq.num_embeddings, classes, ranks, "gated", PRIOR, scaled(PRIOR_FIT))
    labels = torch.arange(classes).repeat_interleave(SAMPLES_PER_CLASS)
    height, width = vqvae.code_shape(train.shape[1:])
    shape = height, width
    each = {"labels": f"{SAMPLES_PER_CLASS} of each class"}
    wanted = steps.Wanted(len(labels), shape, each, lambda rows: labels[rows.start : rows.stop])
    samples = steps.sample(run, run, prior, wanted, ranks, seed=seed)
    if not ranks.first:
        return {}
    if (run.folder / "timings.json").is_file():  # the last of the files
        return read_json(run.folder / "metrics.json")

    alone = Ranks(0, 1, ranks.device)
    train_codes, coded = (stored(run, f"codes/{part}") for part in (TRAIN, HELD_OUT))
    in_use = len(train_codes.all()[0].unique()) / vqvae.vq.num_embeddings
    generated = torch.cat(list(steps.decoded(vqvae, samples, range(samples.num), alone)))
    classifier = fit_classifier(train)
    metrics = {
        "classifier_accuracy_on_held_out_digits": accuracy(classifier, all_of(held_out), held_out.labels),
        "classifier_agrees_with_requested_label": accuracy(classifier, generated, labels.numpy()),
        "generated": len(generated),
        "reconstruction_held_out": steps.reconstruct(vqvae, held_out, alone),
        "codes_in_use": in_use,
        "prior_bits_per_code": {
            "train": steps.bits_per_code(prior, train_codes, alone).mean().item(),
            "held_out": steps.bits_per_code(prior, coded, alone).mean().item(),
        },
    }
    codes = coded.read(range(24))[0]
    reconstructions = torch.cat(list(steps.decoded(vqvae, coded, range(24), alone)))
    originals = held_out.batch(range(24))
    shown = generated.view(classes, SAMPLES_PER_CLASS, *train.shape)[:, :12].flatten(0, 1)
    maps = pictures.code_maps(codes, vqvae.vq.num_embeddings, originals, 12)
    write_file(run.folder / "reconstructions.png", pictures.pairs(originals, reconstructions, 12))
    write_file(run.folder / "code_maps.png", maps)
    write_file(run.folder / "samples.png", pictures.grid(shown, 12, [str(c) for c in range(classes)]))
    write_json(run.folder / "metrics.json", metrics)
    write_json(run.folder / "timings.json", {**race(prior, shape), "seconds": time.monotonic() - began})
    return metrics


def all_of(images: Images) -> torch.Tensor:
    """All images ``(N, C, H, W)``."""
    return images.batch(range(len(images)))


def fit_classifier(images: Images):
    """A support-vector classifier of real images: the judge of generated ones."""
    from sklearn.svm import SVC

    return SVC(C=10).fit(all_of(images).flatten(1).numpy(), images.labels)


def accuracy(classifier, images: torch.Tensor, labels: np.ndarray) -> float:
    """How often the classifier says ``labels (N,)`` of ``images (N, C, H, W)``."""
    return float((classifier.predict(images.flatten(1).numpy()) == labels).mean())


def race(prior: CausalPrior, shape: tuple[int, int], batch: int = 64) -> dict[str, float]:
    """Seconds for a batch by the naive and by the cached sampler, and how many codes they agree on."""
    labels = torch.arange(batch) % prior.num_classes if prior.num_classes else None
    seconds, codes = {}, {}
    for method in ("torch", "reference"):
        prior.sample(batch, shape, labels=labels, method="torch")  # warm
        began = time.perf_counter()
        codes[method] = prior.sample(batch, shape, labels=labels, method=method)
        seconds[method] = time.perf_counter() - began
    return {
        "sampled_together": batch,
        "naive_seconds": seconds["reference"],
        "cached_seconds": seconds["torch"],
        "cached_is_times_faster": seconds["reference"] / seconds["torch"],
        "codes_that_agree": float((codes["reference"] == codes["torch"]).double().mean()),
    }


def summary(folder: str) -> str:
    """What a person wants to know of a finished demo.

    Raises:
        ValueError: the folder's figures are another's.
    """
    metrics, timings = (read_json(Path(folder) / f"{name}.json") for name in ("metrics", "timings"))
    try:
        return _told(folder, metrics, timings)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} has metrics.json or timings.json of something else: {error!r}") from error


def _told(folder: str, metrics: dict[str, Any], timings: dict[str, Any]) -> str:
    bits, reconstruction = metrics["prior_bits_per_code"], metrics["reconstruction_held_out"]
    return "\n".join(
        [
            f"reconstruction of held-out digits   psnr {reconstruction['psnr']:.1f} dB, "
            f"mse {reconstruction['mse']:.5f}",
            f"codes in use                        {metrics['codes_in_use']:.0%}",
            f"prior, bits a code                  {bits['train']:.2f} train, {bits['held_out']:.2f} held out",
            "classifier on held-out real digits  "
            f"{metrics['classifier_accuracy_on_held_out_digits']:.1%} right",
            f"  on {metrics['generated']} generated digits         "
            f"{metrics['classifier_agrees_with_requested_label']:.1%} as requested",
            f"sampling {timings['sampled_together']} digits                  "
            f"naive {timings['naive_seconds']:.2f} s, cached {timings['cached_seconds']:.3f} s: "
            f"{timings['cached_is_times_faster']:.0f} times faster, "
            f"{timings['codes_that_agree']:.2%} of the codes the same",
            f"pictures, figures and weights       {folder}",
        ]
    )
