"""The trainings of the suite ``video``, each of which is kept as soon as it is finished.

A folder has the name of all that its trainings depend on: the data, the sizes, and the sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import DEVICE, ROOT
from benchmarks.video_game import ACTIONS
from vqfast.models import VQVAE
from vqfast.pipeline import load_model, save_model
from vqfast.priors import ClipPrior

RUNS = ROOT / "runs" / "video"
# what a kept training depends on, besides its data and its size
SOURCES = (
    "vqfast/nn/*.py",
    "vqfast/models/architectures.py",
    "vqfast/priors/[cfp]*.py",
    "benchmarks/video_runs.py",
)
MODEL: dict[str, Any] = {
    "hidden_channels": 64,
    "num_residual_blocks": 1,
    "num_embeddings": 512,
    "embedding_dim": 32,
    "decay": 0.99,
}
PRIOR: dict[str, Any] = {
    "channels": 32,
    "num_layers": 2,
    "first_kernel_size": 3,
    "head_channels": 96,
    "context_channels": 64,
    "context_blocks": 2,
}


class Size(NamedTuple):
    """How much is trained and measured."""

    episodes: int
    model_steps: int
    prior_steps: int
    windows: int
    draws: int  # whose mean is the prediction
    seeds: int


BATCH, CLIPS, WINDOW = 16, 2, 4  # frames of a step of the model; clips of a step of the prior, their frames
LR, PRIOR_LR = 2e-3, 4e-3
UNKNOWN = 0.1  # the share of clips in training whose actions aren't told
STEPS_OF_A_PART = 250  # after which a training that is stopped goes on


def folder_of(name: str, size: Size, seed: int, data: bytes) -> Path:
    """Where the trainings of a seed are kept."""
    parts = [path.read_bytes() for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
    key = hashlib.sha256(b"".join([data, *parts])).hexdigest()[:16]
    return RUNS / f"{name}-{size.model_steps}-{size.prior_steps}-{key}" / f"{seed}"


def fitted(model: nn.Module, steps: int, lr: float, loss: Callable[[], Tensor], part: Path) -> None:
    """Trains with AdamW, a warmup and a cosine; goes on where it was stopped, from the file ``part``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = min(50, steps)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    began = 0
    if part.is_file():
        state = torch.load(part, weights_only=True, map_location=DEVICE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        began = state["step"]
    model.train()
    for step in range(began, steps):
        if step % STEPS_OF_A_PART == 0 and step > began:
            owners: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
            states: dict[str, Any] = {name: owner.state_dict() for name, owner in owners.items()}
            part.parent.mkdir(parents=True, exist_ok=True)
            torch.save({**states, "random": torch.get_rng_state(), "step": step}, part.with_suffix(".new"))
            part.with_suffix(".new").replace(part)
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def kept(folder: Path, name: str, make: Callable[[], nn.Module]) -> Any:
    """The model ``name`` in ``folder``, made if it isn't there."""
    if not (folder / f"{name}.safetensors").is_file():
        trained: Any = make()
        save_model(folder, name, trained)
        (folder / f"{name}.part").unlink(missing_ok=True)
    return load_model(folder, name, device=DEVICE)


def trained_model(folder: Path, clips: Tensor, steps: int, seed: int) -> VQVAE:
    """The VQ-VAE of frames, ``clips`` uint8 ``(N, T, 3, H, W)``."""

    def make() -> VQVAE:
        torch.manual_seed(seed)
        model = VQVAE.named("paper-video", **MODEL).to(DEVICE)
        frames = clips.flatten(0, 1)
        weight = 1 / 16 / float((frames[::50].float() / 255).var())

        def loss() -> Tensor:
            x = as_input(frames[torch.randint(len(frames), (BATCH, 1))])
            out = model(x)
            return weight * F.mse_loss(out.reconstruction, x) + out.loss

        fitted(model, steps, LR, loss, folder / "vqvae.part")
        return model

    return kept(folder, "vqvae", make)  # type: ignore[no-any-return]


def trained_prior(
    folder: Path,
    codebook: Tensor,
    codes: Tensor,
    actions: Tensor | None,
    steps: int,
    seed: int,
    *,
    alone: bool = False,
) -> ClipPrior:
    """The prior of clips; with ``alone`` of clips of one frame."""

    name = "prior-alone" if alone else "prior"

    def make() -> ClipPrior:
        torch.manual_seed(seed)
        count = None if actions is None else len(ACTIONS)
        prior = ClipPrior(MODEL["num_embeddings"], num_actions=count, **PRIOR).to(DEVICE)
        prior.start_from(codebook)
        length = 1 if alone else WINDOW
        first = 0 if alone else 1

        def loss() -> Tensor:
            clip = torch.randint(len(codes), (CLIPS * WINDOW // length, 1))
            frame = torch.randint(codes.shape[1] - length + 1, clip.shape) + torch.arange(length)
            given: dict[str, Tensor] = {}
            if actions is not None:
                unknown = torch.rand(len(clip), 1) < UNKNOWN
                given["actions"] = actions[clip, frame].masked_fill(unknown, -1).to(DEVICE)
            return prior.bits_per_frame(codes[clip, frame].to(DEVICE), **given)[:, first:].mean()

        fitted(prior, steps, PRIOR_LR, loss, folder / f"{name}.part")
        return prior

    return kept(folder, name, make)  # type: ignore[no-any-return]


def as_input(frames: Tensor) -> Tensor:
    """uint8 ``(B, T, 3, H, W)`` as the model takes them, ``(B, 3, T, H, W)``."""
    return frames.to(DEVICE).transpose(1, 2).float() / 255


@torch.no_grad()
def encoded(model: VQVAE, clips: Tensor) -> Tensor:
    """The codes ``(N, T, h, w)`` of uint8 ``(N, T, 3, H, W)``."""
    return torch.cat([model.encode(as_input(part)).cpu() for part in clips.split(4)])


@torch.no_grad()
def decoded(model: VQVAE, codes: Tensor) -> Tensor:
    """The frames ``(N, T, 3, H, W)`` in 0 to 1 of ``codes (N, T, h, w)``."""
    parts = [model.decode(part.to(DEVICE)).clamp(0, 1).cpu() for part in codes.split(4)]
    return torch.cat(parts).transpose(1, 2)
