"""The five steps from images to new images: train, encode, train the prior, sample, decode.

Each notes its settings in the run's folder, does what isn't done yet and can be killed at any moment: begun
again with the same settings, it ends with the same bits.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.data import Images
from vqfast.files import open_file, write_file
from vqfast.models import VQVAE
from vqfast.pipeline import images as pictures
from vqfast.pipeline.checkpoint import Run, load_model, save_model, write_json
from vqfast.pipeline.codes import BATCH, Codes, Tick, pack, shards, stored, write_files, write_shards
from vqfast.pipeline.formats import FORMATS
from vqfast.pipeline.parts import TRAIN, open_images
from vqfast.pipeline.progress import bar, say
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.train import History, fit_prior, fit_vqvae
from vqfast.priors import PixelCNN, ResidualPixelCNN
from vqfast.priors.base import CausalPrior
from vqfast.sampling.memory import in_batches

Rows = Callable[[range], Tensor]

PRIORS: dict[str, type[CausalPrior]] = {"gated": PixelCNN, "residual": ResidualPixelCNN}


def train_vqvae(
    run: Run, images: dict[str, Any], ranks: Ranks, name: str, model: dict[str, Any], fit: dict[str, Any]
) -> VQVAE:
    """Step 1.

    ``images``: the note for ``open_images``; ``model``: overrides of the named configuration; ``fit``: see
    ``train.fit_vqvae``.
    """
    parts, found = open_images(run, images, ranks)
    part = parts[TRAIN]
    say(ranks, "data", part.told())
    _seed(fit["seed"])
    vqvae = VQVAE.named(name, in_channels=part.shape[0], **model)
    try:
        vqvae.code_shape(part.shape[1:])
    except ValueError as error:
        if images["size"] is not None:
            wanted = f"a multiple of {vqvae.stride}, the model's stride"
            raise ValueError(f"size is {images['size']}; want {wanted}") from None
        raise ValueError(f"the images don't fit the model: {error}; --size resizes them") from None
    settings = {"images": images, "name": name, **model, **fit}
    _begin(run, "vqvae", settings, ranks)
    _begin(run, "data", found, ranks)
    return _train(run, "vqvae", settings, vqvae, ranks, lambda **o: fit_vqvae(vqvae, part, **o), fit)


def encode(run: Run, out: Run, vqvae: VQVAE, part: str, images: Images, ranks: Ranks) -> None:
    """Step 2: images to codes, in shards under ``codes/<part>`` of ``out``, with their labels."""
    settings = {"data": images.fingerprint, "num": len(images), "weights": _digest(run.folder, "vqvae")}
    codes = encoded(vqvae, images, ranks)

    def make(rows: range, tick: Tick) -> dict[str, np.ndarray]:
        found = []
        for first in range(0, len(rows), BATCH):
            found.append(codes.read(rows[first : first + BATCH])[0])
            tick(len(found[-1]))
        shard = {"codes": pack(torch.cat(found), vqvae.vq.num_embeddings)}
        if images.labels is not None:
            shard["labels"] = images.labels[rows.start : rows.stop]
        return shard

    _begin(out, f"codes/{part}", settings, ranks)
    write_shards(out.folder / "codes" / part, len(images), ranks, f"encode {part}", make)


@torch.no_grad()
def _parts(work: Callable[[range], Tensor], rows: range) -> Iterator[Tensor]:
    """``work(rows)``, ``BATCH`` rows at a time, on the CPU; in smaller parts where those don't fit."""
    for first in range(0, len(rows), BATCH):
        some = rows[first : first + BATCH]

        def piece(r: range, some: range = some) -> Tensor:
            return work(some[r.start : r.stop]).cpu()

        yield torch.cat(list(in_batches(piece, len(some), len(some))))


def encoded(vqvae: VQVAE, images: Images, ranks: Ranks) -> Codes:
    """The codes of images, made when they are read."""

    def read(rows: range) -> tuple[Tensor, Tensor | None]:
        parts = _parts(lambda some: vqvae.encode(images.batch(some).to(ranks.device)), rows)
        labels = None if images.labels is None else torch.from_numpy(images.labels[rows.start : rows.stop])
        return torch.cat(list(parts)), labels

    return Codes(len(images), images.fingerprint, read)


def decoded(vqvae: VQVAE, codes: Codes, rows: range, ranks: Ranks) -> Iterator[Tensor]:
    """The images ``(n, C, H, W)`` of the codes at ``rows``, floats in 0..1, ``BATCH`` at a time."""

    def work(some: range) -> Tensor:
        return vqvae.decode(codes.read(some)[0].to(ranks.device)).clamp(0, 1)

    return _parts(work, rows)


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
    codes, labels = stored(run, f"codes/{TRAIN}").all()
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


@dataclass(frozen=True)
class Wanted:
    """Which samples.

    Args:
        num: how many.
        shape: of their codes.
        note: identifies what is given of them.
        labels, known: what is given of the samples at some rows: ``(n,)`` and ``(n, H, W)``.
    """

    num: int
    shape: tuple[int, int]
    note: dict[str, Any]
    labels: Rows | None = None
    known: Rows | None = None


def labels_of(prior: CausalPrior, label: int | None) -> Rows | None:
    """Labels of samples: ``label`` for all, or the prior's classes in turn, if it has any.

    Raises:
        ValueError: there is no such class.
    """
    classes = prior.num_classes
    if label is not None and not 0 <= label < (classes or 0):
        raise ValueError(f"label is {label}; the prior has {classes or 'no'} classes")
    if classes is None:
        return None
    if label is not None:
        return lambda rows: torch.full((len(rows),), label)
    return lambda rows: torch.arange(rows.start, rows.stop) % classes


def sample(run: Run, out: Run, prior: CausalPrior, wanted: Wanted, ranks: Ranks, **options: Any) -> Codes:
    """Step 4: shards under ``samples`` of ``out`` with codes and, where there are any, labels.

    ``options``: see ``CausalPrior.sample``.
    """
    positions = math.prod(wanted.shape)

    def make(rows: range, tick: Tick) -> dict[str, np.ndarray]:
        sources = {"labels": wanted.labels, "known": wanted.known}
        given: dict[str, Any] = {name: of(rows) for name, of in sources.items() if of is not None}
        codes = prior.sample(
            len(rows),
            wanted.shape,
            numbers=torch.arange(rows.start, rows.stop),
            progress=lambda drawn: tick(drawn / positions),
            **given,
            **options,
        )
        shard = {"codes": pack(codes, prior.num_embeddings)}
        return {**shard, "labels": given["labels"].numpy()} if "labels" in given else shard

    weights = [_digest(run.folder, "vqvae"), _digest(run.folder, "prior")]
    settings = {"num": wanted.num, "shape": wanted.shape, **wanted.note, "weights": weights, **options}
    _begin(out, "samples", settings, ranks)
    write_shards(out.folder / "samples", wanted.num, ranks, "sample", make)
    return stored(out, "samples")


def decode(run: Run, out: Run, vqvae: VQVAE, codes: Codes, format: str, ranks: Ranks) -> None:
    """Step 5: codes to images, in files of that format in a folder of its name."""

    def make(rows: range, tick: Tick) -> Iterator[bytes]:
        def parts() -> Iterator[Tensor]:
            for part in decoded(vqvae, codes, rows, ranks):
                tick(len(part))
                yield part

        return FORMATS[format].files(parts())

    settings = {"codes": codes.fingerprint, "num": codes.num, "weights": _digest(run.folder, "vqvae")}
    _begin(out, format, settings, ranks)
    write_files(out.folder / format, codes.num, ranks, "decode", FORMATS[format].names, make)


def reconstruct(vqvae: VQVAE, images: Images, ranks: Ranks) -> dict[str, float]:
    """How images survive: mse, psnr (dB), perplexity, share of codes in use."""
    counts = torch.zeros(vqvae.vq.num_embeddings, dtype=torch.int64, device=ranks.device)

    def work(rows: range) -> Tensor:
        x = images.batch(rows).to(ranks.device)
        codes = vqvae.encode(x)
        error = (vqvae.decode(codes).clamp(0, 1) - x).double().square().flatten(1).sum(1)
        counts.add_(codes.flatten().bincount(minlength=len(counts)))
        return error

    mse = _measured("reconstruct", work, len(images), ranks).mean().item() / math.prod(images.shape)
    ranks.add_up([counts])
    used = counts.double() / counts.sum()
    return {
        "mse": mse,
        "psnr": -10 * np.log10(max(mse, 1e-12)),
        "perplexity": torch.special.entr(used).sum().exp().item(),
        "codes_in_use": (counts > 0).double().mean().item(),
    }


def bits_per_code(prior: CausalPrior, codes: Codes, ranks: Ranks, label: int | None = None) -> Tensor:
    """The prior's bits a code of each grid: float64 ``(N,)``. ``label``: of all, in place of their own.

    Raises:
        ValueError: a code is out of range, or the prior has classes and the codes have no labels.
    """

    def work(rows: range) -> Tensor:
        found, labels = codes.read(rows)
        if prior.num_classes is None:
            labels = None
        elif label is not None:
            labels = torch.full((len(rows),), label)
        labels = None if labels is None else labels.to(ranks.device)
        return prior.bits_per_code(found.to(ranks.device), labels).double()

    return _measured("bits a code", work, codes.num, ranks)


def _measured(label: str, work: Callable[[range], Tensor], num: int, ranks: Ranks) -> Tensor:
    """A figure of each of ``num`` items, ``(N,)`` on every process, each of which measures its share."""
    figures = torch.zeros(num, dtype=torch.float64, device=ranks.device)
    with bar(ranks, label, num, unit="img") as progress:
        for rows in shards(num, ranks):
            first = rows.start
            for part in _parts(work, rows):
                figures[first : first + len(part)] = part
                first += len(part)
                progress.update(len(part) * ranks.world)
            if first != rows.stop:
                raise ValueError(f"{label}: {first - rows.start} items came for {len(rows)} rows")
    ranks.add_up([figures])
    return figures.cpu()


def _begin(run: Run, name: str, settings: dict[str, Any], ranks: Ranks) -> None:
    if ranks.first:
        run.stage(name, settings)
    ranks.barrier()


def _seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # torch's generator would look at the low 32 bits only
        raise ValueError(f"seed is {seed}; want 0..2^32 - 1")
    torch.manual_seed(seed)


def _train(
    run: Run,
    name: str,
    settings: dict[str, Any],
    model: VQVAE | CausalPrior,
    ranks: Ranks,
    fit: Callable[..., History],
    options: dict[str, Any],
) -> Any:
    _begin(run, name, settings, ranks)
    state = run.folder / f"{name}.state.safetensors"
    if not (run.folder / f"{name}.safetensors").is_file():
        model.to(ranks.device)
        history = fit(state=state, ranks=ranks, **options)
        if ranks.first:
            write_json(run.folder / f"{name}.history.json", history)
            columns = {key: value for key, value in history.items() if key != "step"}
            curves = pictures.curves(columns, list(map(int, history["step"])), name)
            write_file(run.folder / f"{name}.png", curves)
            save_model(run.folder, name, model)  # last: its presence says that the stage is done
    if ranks.first:
        state.unlink(missing_ok=True)
    ranks.barrier()
    return load_model(run.folder, name, ranks.device)


def _digest(folder: Path, name: str) -> str:
    with open_file(folder / f"{name}.safetensors") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:16]
