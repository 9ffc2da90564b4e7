"""VQ-VAE-2 on photographs: what each of two levels of codes is worth.

Crops of photographs go through the steps of the pipeline; whole photographs are held out. Each prior keeps
the weights that were best on the held-out crops while it was trained. The prior of the bottom is trained a
second time without the codes of the top. Trainings go on where they were stopped, in ``RUNS``.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import photos
from benchmarks.core import AbsentError, Case
from benchmarks.machine import ROOT
from benchmarks.record import RESULTS
from vqfast.data import Dataset
from vqfast.data.images.sheet import grid
from vqfast.files import write_file
from vqfast.models import Autoencoder
from vqfast.pipeline import (
    CodeGrids,
    PriorTraining,
    Run,
    SampleRequest,
    Training,
    bits_per_code,
    encode,
    load_model,
    reopen_parts,
    sample,
    stage_codes,
    train_priors,
    train_vqvae,
)
from vqfast.pipeline.coding import decoded
from vqfast.pipeline.levels import Prior, given
from vqfast.pipeline.parts import HELD_OUT, TRAIN
from vqfast.pipeline.prior_training import prior_task
from vqfast.pipeline.ranks import ALONE
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of
from vqfast.priors import PixelCNN

CASES: list[Case] = []  # nothing is timed
RUNS = ROOT / "runs" / "hierarchy"
SIDE = 64
SHOWN = 6
MODEL = {  # of both levels; the codebooks start from data, which 600 steps are too few to do without
    "hidden_channels": 64,
    "residual_channels": 32,
    "num_embeddings": 256,
    "embedding_dim": 32,
    "decay": 0.95,
    "kmeans_init": True,
    "revive_below": 1.0,
    "level_dropout": 0.3,  # without it the bottom carries everything
}
PRIOR: dict[str, Any] = {
    "channels": 32,
    "num_layers": 5,
    "first_kernel_size": 5,
    "head_channels": 128,
    "dropout": 0.2,
}
ALONE_NAME = "bottom-alone"


class Size(NamedTuple):
    """How much is trained."""

    crops: int  # of each photograph
    vqvae_steps: int
    prior_steps: int


QUICK, FULL = Size(20, 100, 60), Size(250, 600, 600)


def findings(*, full: bool, photographs: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of PSNR by levels and of bits a code; reconstructions and samples become a picture.

    Args:
        full: trains for some three minutes on two cores; otherwise for one.
        photographs: a folder, or ``None`` for those that packages bring.
    """
    size, folder = (FULL, RUNS / "full") if full else (QUICK, RUNS / "quick")
    try:
        crops = write_crops(photos.photographs(photographs), size.crops, folder / "crops")
    except AbsentError as error:
        print(f"hierarchy: {error}", flush=True)
        return {}
    run = Run(folder / "run", create=True)
    training = Training(steps=size.vqvae_steps, batch_size=16, lr=1e-3)
    grouping: dict[str, Any] = {"val": 0.25, "group": r"(.*)_crop"}
    vqvae = train_vqvae(run, crops, model="vqvae2", model_options=MODEL, training=training, **grouping)
    parts = reopen_parts(run)
    for part, dataset in parts.items():
        encode(run, vqvae, dataset, part=part)
    every = max(1, size.prior_steps // 20)
    prior_training = PriorTraining(steps=size.prior_steps, batch_size=16, lr=1e-3, val_every=every)
    priors = train_priors(run, prior_options=PRIOR, training=prior_training)
    held_out = stage_codes(run, f"codes/{HELD_OUT}")
    alone = trained_alone(run, vqvae, prior_training)
    bits = bits_per_code(priors, held_out).mean(0).tolist()
    bits.append(bits_per_code([alone], of_level(held_out, 1)).mean().item())
    shapes = vqvae.code_shapes((SIDE, SIDE))
    samples = sample(run, priors, SampleRequest(2 * SHOWN, shapes))
    finer = drawn_bottoms(held_out, priors[1], shapes[1])
    shown = range(0, held_out.num, -(-held_out.num // SHOWN))
    lines = [
        parts[HELD_OUT].batch(shown),
        *(next(decoded(vqvae, codes, range(i, i + 1))) for codes in (finer, held_out) for i in shown),
        *decoded(vqvae, samples, range(2 * SHOWN)),
    ]
    captions = ["original", "new bottom", "both levels", "all new", ""]
    picture = grid(torch.cat(lines), columns=SHOWN, captions=captions)
    write_file(RESULTS / "hierarchy-photographs.png", picture)
    top, bottom = map(math.prod, shapes)
    reconstructions = {
        name: {"codes": f"{count}", "PSNR": f"{psnr(vqvae, codes, parts[HELD_OUT], number):.2f} dB"}
        for name, codes, number, count in (
            ("top alone", held_out, 1, top),
            ("top, and a bottom that the prior draws", finer, 2, top),
            ("top and bottom", held_out, 2, top + bottom),
        )
    }
    names = ("top", "bottom, given the top", "bottom, without the top")
    return {
        f"VQ-VAE-2, held-out photographs, {SIDE}x{SIDE} crops": reconstructions,
        "Bits a code, held-out photographs": {
            name: {"bits a code": f"{figure:.3f}"} for name, figure in zip(names, bits, strict=True)
        },
    }


def drawn_bottoms(codes: CodeGrids, prior: Prior, shape: tuple[int, ...]) -> CodeGrids:
    """The codes with the bottom drawn anew by its prior, given the top."""
    levels, _ = codes.all()
    made = [levels[0], prior.sample(codes.num, shape, seed=1, **given(prior, levels))]
    return CodeGrids(
        codes.num, "", lambda numbers: ([grids[numbers.start : numbers.stop] for grids in made], None)
    )


def psnr(vqvae: Autoencoder, codes: CodeGrids, dataset: Dataset, levels: int) -> float:
    """How near what is decoded from so many levels of codes comes to a dataset."""
    outputs = torch.cat(list(decoded(vqvae, codes, range(codes.num), levels=levels)))
    return -10 * math.log10(F.mse_loss(outputs, dataset.batch(range(codes.num))).item())


def write_crops(paths: list[Path], num: int, folder: Path) -> Path:
    """A folder with ``num`` crops of each photograph, as pictures."""
    for path in paths:
        for number, crop in enumerate(photos.crops([path], num, SIDE)):
            file = folder / f"{path.stem}_crop{number:04d}.png"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = (crop * 255).round().to(torch.uint8).movedim(0, -1).numpy()
                Image.fromarray(pixels).save(file)
    return folder


def of_level(codes: CodeGrids, level: int) -> CodeGrids:
    """The codes of one level, as those of a model that has no other."""
    return CodeGrids(codes.num, codes.fingerprint, lambda numbers: ([codes.read(numbers)[0][level]], None))


def trained_alone(run: Run, vqvae: Autoencoder, training: Training) -> PixelCNN:
    """The prior of the bottom as it is without the codes of the top."""
    train, held_out = (of_level(stage_codes(run, f"codes/{part}"), 1) for part in (TRAIN, HELD_OUT))
    torch.manual_seed(training.seed)
    prior = PixelCNN(vqvae.codebook_sizes[1], **PRIOR)
    grids, _ = train.all()
    begin_training(run, ALONE_NAME, training.settings(train.num), ALONE)

    def measure() -> dict[str, float]:
        return {"held_out_bits_per_code": bits_per_code([prior], held_out).mean().item()}

    validation = validation_of(training, "held_out_bits_per_code", measure)
    make_task = partial(prior_task, prior, grids, None, ALONE)
    train_once(run, ALONE_NAME, prior, make_task, training, validation=validation, ranks=ALONE)
    return cast(PixelCNN, load_model(run.folder, ALONE_NAME))
