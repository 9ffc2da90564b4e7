"""The trainings of the suite ``training``: how one goes, and a file that keeps those that are finished."""

from __future__ import annotations

import hashlib
import inspect
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqfast
from benchmarks.machine import DEVICE, ROOT
from vqfast.pipeline import Run, Training, train_vqvae

RUNS = ROOT / "runs" / "training.jsonl"
SIDE, SIZES, BATCH, HIDDEN, D = 32, (2000, 256), 16, 32, 32
MOMENTS, EVERY = 5, 10  # measurements at the end of a training, so many steps apart
LARGE = 1024  # code vectors above which the peer's layer is accelerated
PEER = "vector-quantize-pytorch"
DEFAULTS = "defaults"
COMMAND = "command line"
# what a kept run depends on, besides its setting, the crops and its loop
SOURCES = ("vqfast/nn/*.py", "vqfast/models/architectures.py")
COMMANDS_SOURCES = ("vqfast/pipeline/options.py", "vqfast/pipeline/vqvae_task.py")


def peer(k: int, decay: float, rotation: bool) -> nn.Module:
    """The layer of vector-quantize-pytorch with its means against collapse.

    With a large codebook it is accelerated, which makes a step 30 times faster and its codes the nearest.
    """
    from vector_quantize_pytorch import VectorQuantize

    options = {"kmeans_init": True, "threshold_ema_dead_code": 2, "accept_image_fmap": True}
    layer: nn.Module = VectorQuantize(D, k, decay=decay, rotation_trick=rotation, **options)
    model = nn.Sequential(layer)
    if k > LARGE:
        vqfast.accelerate(model)
    return model[0]


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
    "decay 0.95": partial(layer, decay=0.95),
    "decay 0.8": partial(layer, decay=0.8),
    f"{PEER}, decay 0.8": partial(peer, decay=0.8, rotation=True),
    f"{PEER}, decay 0.99": partial(peer, decay=0.99, rotation=True),
    f"{PEER}, decay 0.8, straight-through": partial(peer, decay=0.8, rotation=False),
}
# layers that are tried at other rates too
SWEPT = {
    DEFAULTS: (3e-4, 3e-3),
    "decay 0.99": (3e-3,),
    "decay 0.95": (3e-4, 3e-3),
    "decay 0.8": (3e-3,),
    f"{PEER}, decay 0.8": (3e-4, 3e-3),
}


class Setting(NamedTuple):
    """One training.

    Attributes:
        layer: one of ``LAYERS``, or ``COMMAND``.
        lr: ``None`` for the command line's own.
    """

    layer: str
    k: int
    lr: float | None
    steps: int
    seed: int

    @property
    def label(self) -> str:
        """What is trained, without the size, the length and the seed."""
        return self.layer if self.lr is None else f"{self.layer}, lr {self.lr:g}"


class Reached(NamedTuple):
    """What a training reached on held-out crops."""

    psnr: float  # dB
    perplexity: float
    seconds: float


def train(setting: Setting, crops: tuple[Tensor, Tensor]) -> Reached:
    """Trains a model and measures it on the held-out crops.

    The figures are means over the moments, since PSNR varies by some tenths of a dB from step to step.
    """
    began = time.monotonic()
    loop = by_command if setting.layer == COMMAND else by_loop
    measured = [measure(model, crops[1], setting.k) for model in loop(setting, crops)]
    psnr, perplexity = map(statistics.mean, zip(*measured, strict=True))
    return Reached(psnr, perplexity, time.monotonic() - began)


def moments(steps: int) -> list[int]:
    """The steps after which a training is measured."""
    return [steps - EVERY * i for i in reversed(range(MOMENTS))]


@torch.no_grad()
def measure(model: nn.Module, held_out: Tensor, k: int) -> tuple[float, float]:
    """PSNR and perplexity."""
    model.eval()
    held_out = held_out.to(DEVICE)
    parts = [model(part) for part in torch.split(held_out, BATCH)]
    error = F.mse_loss(torch.cat([part[0] for part in parts]), held_out)
    perplexity = vqfast.functional.perplexity(torch.cat([part[1] for part in parts]), k)
    return -10 * float(error.log10()), float(perplexity)


def by_loop(setting: Setting, crops: tuple[Tensor, Tensor]) -> Iterator[nn.Module]:
    """A loop as people write it: Adam at one rate, the mean squared error and the layer's loss.

    Yields the model at each moment.
    """
    inputs = crops[0].to(DEVICE)
    torch.manual_seed(setting.seed)
    model = vqfast.VQVAE(hidden_channels=HIDDEN, num_embeddings=2, embedding_dim=D)
    model.add_module("vq", LAYERS[setting.layer](setting.k))
    model.to(DEVICE)
    assert setting.lr is not None
    optimizer = torch.optim.Adam(model.parameters(), setting.lr, fused=True)
    for step in range(1, setting.steps + 1):
        model.train()
        batch = inputs[torch.randint(len(inputs), (BATCH,)).to(DEVICE)]
        optimizer.zero_grad()
        reconstruction, _, loss = model(batch)
        torch.autograd.backward(F.mse_loss(reconstruction, batch) + loss.sum())
        optimizer.step()
        if step in moments(setting.steps):
            yield model


def by_command(setting: Setting, crops: tuple[Tensor, Tensor]) -> Iterator[nn.Module]:
    """``vqfast train-vqvae`` with nothing but the data, the length, the batch and the sizes.

    Yields the model at the last moment alone: its weights at others aren't to be had.
    """
    sizes = {"hidden_channels": HIDDEN, "num_embeddings": setting.k, "embedding_dim": D}
    training = Training(steps=setting.steps, batch_size=BATCH, seed=setting.seed)
    with tempfile.TemporaryDirectory() as folder:
        data, val = f"{folder}/data.npy", f"{folder}/val.npy"
        for path, part in zip((data, val), crops, strict=True):
            np.save(path, (part * 255).round().byte().movedim(1, -1).numpy())
        run = Run(f"{folder}/run", create=True)
        yield train_vqvae(run, data, val=val, model_options=sizes, training=training).to(DEVICE)


class Runs:
    """Trainings, each of which is kept in a file as soon as it is finished.

    Args:
        crops: what to train on, and what is held out.
        path: the file; runs on other crops or of other sources are left alone in it.
    """

    def __init__(self, crops: tuple[Tensor, Tensor], path: Path) -> None:
        self.crops, self.path = crops, path
        found = hashlib.sha256(b"".join(part.numpy().tobytes() for part in crops)).hexdigest()[:16]
        self.keys = {
            COMMAND: [found, digest(by_command, *SOURCES, *COMMANDS_SOURCES)],
            DEFAULTS: [found, digest(by_loop, *SOURCES)],
        }
        self.kept: dict[Setting, Reached] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            key, setting, reached = json.loads(line)
            if key == self.key(Setting(*setting)):
                self.kept[Setting(*setting)] = Reached(*reached)

    def key(self, setting: Setting) -> list[str]:
        """What a kept run must agree in."""
        return self.keys[COMMAND if setting.layer == COMMAND else DEFAULTS]

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
                file.write(json.dumps([self.key(setting), setting, self.kept[setting]]) + "\n")
            psnr, perplexity, seconds = self.kept[setting]
            told = f"{psnr:.2f} dB, perplexity {perplexity:.0f} [{seconds:.0f} s]"
            print(f"training: {setting}: {told}", flush=True)
        return self.kept[setting]


def digest(loop: Callable[..., object], *patterns: str) -> str:
    """A digest of a loop, its sizes, and the files that match."""
    parts = [inspect.getsource(loop), str((SIDE, SIZES, BATCH, HIDDEN, D, MOMENTS, EVERY))]
    parts += [path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
