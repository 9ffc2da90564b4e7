"""The five steps from images to new images: train, encode, train the prior, sample, decode.

Each notes its settings in the run's folder, does what isn't done yet and can be killed at any moment: begun
again with the same settings, it ends with the same bits.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.functional import perplexity
from vqfast.models import VQVAE
from vqfast.pipeline import images as pictures
from vqfast.pipeline.checkpoint import Run, load_model, save_model, write_file, write_json
from vqfast.pipeline.codes import Tick, pack, read_shards, unpack, write_shards
from vqfast.pipeline.data import Images, load_images
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.train import History, fit_prior, fit_vqvae
from vqfast.prior import PixelCNN, ResidualPixelCNN
from vqfast.prior.base import CausalPrior

PRIORS: dict[str, type[CausalPrior]] = {"gated": PixelCNN, "residual": ResidualPixelCNN}
HELD_OUT, TRAIN = "held-out", "train"  # the parts of a run's images
BATCH = 128  # images at a time where nothing is learned; fixed, so that results don't depend on it


def open_images(note: dict[str, Any]) -> dict[str, Images]:
    """A run's images by part. ``note``: the arguments of ``load_images``, ``holdout`` and its ``seed``.

    Raises:
        ValueError: they have changed since their fingerprint was noted; or as ``load_images``.
    """
    images = load_images(note["source"], note["labels"], note["size"], note["channels"])
    if note.setdefault("fingerprint", images.fingerprint) != images.fingerprint:
        raise ValueError(f"{note['source']} has changed since the run was trained on it")
    return dict(zip((TRAIN, HELD_OUT), images.split(note["holdout"], note["seed"]), strict=True))


def reopen_images(run: Run) -> dict[str, Images]:
    """The images that the run was trained on.

    Raises:
        FileNotFoundError: it wasn't.
    """
    settings = run.settings("vqvae")
    if settings is None:
        raise FileNotFoundError(f"{run.folder} holds no trained VQ-VAE: train one first")
    return open_images(settings["images"])


def train_vqvae(
    run: Run, images: dict[str, Any], ranks: Ranks, name: str, model: dict[str, Any], fit: dict[str, Any]
) -> VQVAE:
    """Step 1.

    ``images``: the note for ``open_images``; ``model``: overrides of the named configuration; ``fit``: see
    ``train.fit_vqvae``.
    """
    parts = open_images(images)
    if run.settings("vqvae") is None:  # a bad image shows now, not after hours of training
        for label, whole in parts.items():
            with bar(ranks, f"look at {label} images", len(whole), unit="img") as progress:
                for rows in torch.arange(len(whole)).split(BATCH):
                    whole.batch(rows)
                    progress.update(len(rows))
    part = parts[TRAIN]
    _seed(fit["seed"])
    vqvae = VQVAE.named(name, in_channels=part.shape[0], **model)
    try:
        vqvae.code_shape(part.shape[1:])
    except ValueError as error:
        raise ValueError(f"the images don't fit the model: {error}; --size resizes them") from None
    settings = {"images": images, "name": name, **model, **fit}
    return _train(run, "vqvae", settings, vqvae, ranks, lambda **o: fit_vqvae(vqvae, part, **o), fit)


def encode(run: Run, out: Run, vqvae: VQVAE, part: str, images: Images, ranks: Ranks) -> None:
    """Step 2: images to codes, in shards under ``codes/<part>`` of ``out``, with their labels."""
    settings = {"data": images.fingerprint, "num": len(images), "weights": _digest(run.folder, "vqvae")}

    def make(rows: range, tick: Tick) -> dict[str, np.ndarray]:
        codes = []
        for first in range(0, len(rows), BATCH):
            x = images.batch(rows[first : first + BATCH]).to(ranks.device)
            codes.append(vqvae.encode(x).cpu())
            tick(len(x))
        shard = {"codes": pack(torch.cat(codes), vqvae.vq.num_embeddings)}
        if images.labels is not None:
            shard["labels"] = images.labels[rows.start : rows.stop]
        return shard

    _begin(out, f"codes/{part}", settings, ranks)
    write_shards(out.folder / "codes" / part, len(images), ranks, f"encode {part}", make)


def read_codes(run: Run, part: str) -> tuple[Tensor, Tensor | None]:
    """What ``encode`` wrote: codes int64 ``(N, H, W)`` and labels int64 ``(N,)`` if there are any.

    Raises:
        FileNotFoundError: nothing was encoded.
    """
    settings = run.settings(f"codes/{part}")
    if settings is None:
        raise FileNotFoundError(f"{run.folder} holds no {part} codes: encode first")
    arrays = read_shards(run.folder / "codes" / part, settings["num"])
    labels = arrays.get("labels")
    return unpack(arrays["codes"]), None if labels is None else unpack(labels)


def train_prior(
    run: Run,
    num_embeddings: int,
    num_classes: int | None,
    ranks: Ranks,
    name: str,
    model: dict[str, Any],
    fit: dict[str, Any],
) -> CausalPrior:
    """Step 3, on the codes of the part ``TRAIN``."""
    codes, labels = read_codes(run, TRAIN)
    settings = {
        "codes": run.settings(f"codes/{TRAIN}"),
        "name": name,
        "num_classes": num_classes,
        **model,
        **fit,
    }
    _seed(fit["seed"])
    if name not in PRIORS:
        raise ValueError(f"prior is {name!r}; want {' or '.join(PRIORS)}")
    unknown = model.keys() - inspect.signature(PRIORS[name]).parameters.keys()
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: not an option of the {name} prior")
    prior = PRIORS[name](num_embeddings, num_classes=num_classes, **model)
    if num_classes is None:
        labels = None
    return _train(run, "prior", settings, prior, ranks, lambda **o: fit_prior(prior, codes, labels, **o), fit)


def sample(
    run: Run,
    out: Run,
    vqvae: VQVAE,
    prior: CausalPrior,
    num: int,
    shape: tuple[int, int],
    labels: Tensor | None,
    ranks: Ranks,
    **options: Any,
) -> None:
    """Steps 4 and 5: shards of ``out`` with codes, labels and images (uint8 ``(N, C, H, W)``).

    ``options``: see ``CausalPrior.sample``.
    """
    weights = [_digest(run.folder, "vqvae"), _digest(run.folder, "prior")]
    digest = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16]

    def make(rows: range, tick: Tick) -> dict[str, np.ndarray]:
        mine = None if labels is None else labels[rows.start : rows.stop]
        numbers, positions = torch.tensor(rows), np.prod(shape)
        codes = prior.sample(
            len(rows),
            shape,
            labels=mine,
            numbers=numbers,
            progress=lambda drawn: tick(drawn / positions),
            **options,
        )
        with torch.no_grad():
            decoded = [vqvae.decode_codes(part).clamp(0, 1).cpu() for part in codes.split(BATCH)]
        shard = {
            "codes": pack(codes, prior.num_embeddings),
            "images": (torch.cat(decoded) * 255).round().to(torch.uint8).numpy(),
        }
        return shard if mine is None else {**shard, "labels": mine.numpy()}

    settings = {"num": num, "shape": shape, "labels": digest, "weights": weights, **options}
    _begin(out, "samples", settings, ranks)
    write_shards(out.folder / "samples", num, ranks, "sample", make)


def read_samples(out: Run, most: int | None = None) -> dict[str, np.ndarray]:
    """What ``sample`` wrote, or the first ``most`` of it: codes, images and, if there are any, labels."""
    num = out.settings("samples")["num"]
    arrays = read_shards(out.folder / "samples", num if most is None else min(num, most))
    return {name: array[:most] for name, array in arrays.items()}


@torch.no_grad()
def reconstruct(vqvae: VQVAE, images: Images, ranks: Ranks) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Reconstructions ``(N, C, H, W)`` in 0..1, codes; mse, psnr (dB), perplexity, share of codes in use."""
    outputs, codes, error = [], [], 0.0
    with bar(ranks, "reconstruct", len(images), unit="img") as progress:
        for first in range(0, len(images), BATCH):
            x = images.batch(range(first, min(len(images), first + BATCH))).to(ranks.device)
            codes.append(vqvae.encode(x))
            outputs.append(vqvae.decode_codes(codes[-1]).clamp(0, 1))
            error += (outputs[-1] - x).double().square().sum().item()
            progress.update(len(x))
    found, mse = torch.cat(codes), error / (len(images) * np.prod(images.shape))
    figures = {
        "mse": mse,
        "psnr": -10 * np.log10(max(mse, 1e-12)),
        "perplexity": perplexity(found, vqvae.vq.num_embeddings).item(),
        "codes_in_use": len(found.unique()) / vqvae.vq.num_embeddings,
    }
    return torch.cat(outputs).cpu(), found.cpu(), figures


@torch.no_grad()
def bits_per_code(prior: CausalPrior, codes: Tensor, labels: Tensor | None, ranks: Ranks) -> float:
    """The prior's mean bits a code on codes ``(N, H, W)``."""
    device, total = ranks.device, 0.0
    with bar(ranks, "bits a code", len(codes), unit="img") as progress:
        for rows in torch.arange(len(codes)).split(BATCH):
            mine = None if labels is None else labels[rows].to(device)
            total += prior.bits_per_code(codes[rows].to(device), mine).double().sum().item()
            progress.update(len(rows))
    return total / len(codes)


def _begin(run: Run, name: str, settings: dict[str, Any], ranks: Ranks) -> None:
    if ranks.first:
        run.stage(name, settings)
    ranks.barrier()


def _seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # torch's generator would look at the low 32 bits only
        raise ValueError(f"seed is {seed}; want 0..2^32 - 1")
    torch.manual_seed(seed)


def _train(run: Run, name: str, settings, model, ranks: Ranks, fit, options: dict[str, Any]):
    _begin(run, name, settings, ranks)
    state = run.folder / f"{name}.state.safetensors"
    if not (run.folder / f"{name}.safetensors").is_file():
        model.to(ranks.device)
        history: History = fit(state=state, ranks=ranks, **options)
        if ranks.first:
            write_json(run.folder / f"{name}.history.json", history)
            columns = {key: value for key, value in history.items() if key != "step"}
            write_file(run.folder / f"{name}.png", pictures.curves(columns, history["step"], name))
            save_model(run.folder, name, model)  # last: its presence says that the stage is done
    if ranks.first:
        for left in run.folder.glob(f"*{state.name}*"):  # by a killed process too, whole or half-written
            left.unlink()
    ranks.barrier()
    return load_model(run.folder, name, ranks.device)


def _digest(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()[:16]
