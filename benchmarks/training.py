"""What a VQ-VAE reaches on held-out photographs by the layer's defaults, by other options and by a peer.

The encoder and the decoder are the paper's with 48 channels. The first seed tries every layer at every rate.
The defaults, the best other options and the best options of the peer then train with two more seeds, and with
``--full`` for 4,000 steps. Each finished run is kept in ``RUNS``; the same commit goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks import machine, photos
from benchmarks.core import AbsentError, Case
from benchmarks.machine import DEVICE, ROOT

CASES: list[Case] = []  # nothing is timed
RUNS = ROOT / "runs" / "training.jsonl"
SIDE, SIZES, BATCH, HIDDEN, D = 64, (600, 96), 16, 48, 64
STEPS, LONG = 400, 4000
RATES = (3e-4, 1e-3, 3e-3)
PEER = "vector-quantize-pytorch"
DEFAULTS = "defaults"


def peer(k: int, decay: float, rotation: bool) -> nn.Module:
    """The layer of vector-quantize-pytorch with its means against collapse."""
    from vector_quantize_pytorch import VectorQuantize

    options = {"kmeans_init": True, "threshold_ema_dead_code": 2, "accept_image_fmap": True}
    layer: nn.Module = VectorQuantize(D, k, decay=decay, rotation_trick=rotation, **options)
    return layer


def layer(k: int, **options: object) -> nn.Module:
    """vqfast's layer."""
    return vqfast.VQLayer(k, D, **options)  # type: ignore[arg-type]


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    DEFAULTS: layer,
    "random start, no revival": partial(layer, kmeans_init=False, revive_below=0),
    "no revival": partial(layer, revive_below=0),
    "random start": partial(layer, kmeans_init=False),
    "revive_below 0.1": partial(layer, revive_below=0.1),
    "decay 0.99": partial(layer, decay=0.99),
    "decay 0.9": partial(layer, decay=0.9),
    "decay 0.8": partial(layer, decay=0.8),
    "decay 0.99, no revival": partial(layer, decay=0.99, revive_below=0),
    f"{PEER}, decay 0.8": partial(peer, decay=0.8, rotation=True),
    f"{PEER}, decay 0.99": partial(peer, decay=0.99, rotation=True),
    f"{PEER}, decay 0.8, straight-through": partial(peer, decay=0.8, rotation=False),
}


class Setting(NamedTuple):
    """One training."""

    layer: str
    k: int
    lr: float
    steps: int
    seed: int


class Reached(NamedTuple):
    """What a training reached on held-out crops."""

    psnr: float  # dB
    perplexity: float
    seconds: float


def train(setting: Setting, crops: tuple[Tensor, Tensor]) -> Reached:
    """Trains a model with Adam; the loss is the mean squared error and the layer's."""
    began = time.monotonic()
    inputs, held_out = (part.to(DEVICE) for part in crops)
    torch.manual_seed(setting.seed)
    model = vqfast.VQVAE(hidden_channels=HIDDEN, num_embeddings=2, embedding_dim=D)
    model.add_module("vq", LAYERS[setting.layer](setting.k))
    model.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), setting.lr)
    for _ in range(setting.steps):
        batch = inputs[torch.randint(len(inputs), (BATCH,)).to(DEVICE)]
        optimizer.zero_grad()
        reconstruction, _, loss = model(batch)
        torch.autograd.backward(F.mse_loss(reconstruction, batch) + loss.sum())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        parts = [model(part) for part in torch.split(held_out, BATCH)]
    error = F.mse_loss(torch.cat([part[0] for part in parts]), held_out)
    perplexity = vqfast.functional.perplexity(torch.cat([part[1] for part in parts]), setting.k)
    return Reached(-10 * float(error.log10()), float(perplexity), time.monotonic() - began)


class Runs:
    """Trainings, each of which is kept in a file as soon as it is finished.

    Args:
        crops: what to train on, and what is held out.
        path: the file; runs on other crops or of another commit are left alone in it.
    """

    def __init__(self, crops: tuple[Tensor, Tensor], path: Path) -> None:
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in crops)).hexdigest()
        self.crops, self.path = crops, path
        self.key = [digest[:16], machine.conditions()["commit"]]
        self.kept: dict[Setting, Reached] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            key, setting, reached = json.loads(line)
            if key == self.key:
                self.kept[Setting(*setting)] = Reached(*reached)

    def __call__(self, setting: Setting) -> Reached:
        """What ``setting`` reaches, trained if it isn't kept.

        Raises:
            ImportError: the layer's package isn't installed.
        """
        if setting not in self.kept:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # settings that collapse are meant to
                self.kept[setting] = train(setting, self.crops)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps([self.key, setting, self.kept[setting]]) + "\n")
            psnr, perplexity, seconds = self.kept[setting]
            told = f"{psnr:.2f} dB, perplexity {perplexity:.0f} [{seconds:.0f} s]"
            print(f"training: {setting}: {told}", flush=True)
        return self.kept[setting]


def findings(*, full: bool, photographs: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of held-out PSNR and perplexity.

    Args:
        full: all sizes of codebook, rates, seeds and lengths; otherwise K 128 at one rate with one seed.
        photographs: a folder, or ``None`` for those that packages bring.
    """
    try:
        runs = Runs(photos.split(photographs, SIZES, SIDE), RUNS)
    except AbsentError as error:
        print(f"training: {error}", flush=True)
        return {}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for k in (128, 512, 8192) if full else (128,):
        rates = RATES if full else RATES[1:2]
        tried = sweep(runs, k, rates)
        found[f"K {k}, {STEPS} steps, one seed"] = by_rate(tried)
        for steps in (STEPS, LONG) if full else ():
            found[f"K {k}, {steps} steps, three seeds"] = by_seed(runs, best_of(tried), steps)
    return found


def sweep(runs: Runs, k: int, rates: tuple[float, ...]) -> dict[Setting, Reached]:
    """Every layer at every rate with the first seed."""
    tried = {}
    for name in LAYERS:
        for lr in rates:
            setting = Setting(name, k, lr, STEPS, 0)
            try:
                tried[setting] = runs(setting)
            except ImportError as error:
                print(f"training: {name}: {error}", flush=True)
    return tried


def best_of(tried: dict[Setting, Reached]) -> list[Setting]:
    """The settings with the highest PSNR: of the defaults, of other options, and of the peer."""

    def kind(setting: Setting) -> str:
        return next((own for own in (DEFAULTS, PEER) if setting.layer.startswith(own)), "other options")

    best: dict[str, Setting] = {}
    for setting, reached in tried.items():
        known = best.get(kind(setting))
        if known is None or reached.psnr > tried[known].psnr:
            best[kind(setting)] = setting
    return list(best.values())


def by_rate(tried: dict[Setting, Reached]) -> dict[str, dict[str, str]]:
    """A line for each layer, a column for each rate."""
    table: dict[str, dict[str, str]] = {}
    for setting, (psnr, perplexity, _) in tried.items():
        table.setdefault(setting.layer, {})[f"lr {setting.lr:g}"] = f"{psnr:.2f} dB, {perplexity:.0f} codes"
    return table


def by_seed(runs: Runs, settings: list[Setting], steps: int) -> dict[str, dict[str, str]]:
    """A line for each setting: means over three seeds, and the lowest and highest PSNR."""
    table = {}
    for setting in settings:
        reached = [runs(setting._replace(steps=steps, seed=seed)) for seed in range(3)]
        psnr = [one.psnr for one in reached]
        table[f"{setting.layer}, lr {setting.lr:g}"] = {
            "PSNR": f"{statistics.mean(psnr):.2f} dB",
            "from, to": f"{min(psnr):.2f}, {max(psnr):.2f}",
            "perplexity": f"{statistics.mean(one.perplexity for one in reached):.0f}",
        }
    return table
