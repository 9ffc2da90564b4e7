"""The speed of sampling clips: six frames of codes are given, ten are drawn.

The naive loop runs the whole network over the clip so far at each position, with PyTorch's convolutions. Only
some positions are timed, early, midway and late in the clip, and scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import Case, Outputs
from benchmarks.machine import DEVICE
from benchmarks.sampling import plain_convolutions
from vqfast.priors import ClipPrior
from vqfast.priors.frame_draws import seed_of_frame
from vqfast.sampling.draw import gumbel

GIVEN, DRAWN = 6, 10  # frames
GRID = (12, 16)
BIG: dict[str, Any] = {"num_embeddings": 512, "channels": 128, "num_layers": 15, "context_channels": 128}
NAIVE_AT = ((0, 0), (5, 96), (9, 191))  # frames after those given, and positions, that the naive loop times


def big_prior() -> ClipPrior:
    """The prior that is timed."""
    torch.manual_seed(0)
    return ClipPrior(num_actions=3, **BIG).to(DEVICE).eval()


def clip_and_actions() -> tuple[Tensor, Tensor]:
    """Frames that are given, and actions."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(512, (1, GIVEN, *GRID), generator=generator)
    return codes.to(DEVICE), torch.randint(3, (1, GIVEN + DRAWN), generator=generator).to(DEVICE)


def sampler() -> Callable[[int], Tensor]:
    """The sampler of vqfast."""
    prior, (codes, actions) = big_prior(), clip_and_actions()
    shape = (GIVEN + DRAWN, *GRID)
    return lambda seed: prior.sample(1, shape, known=codes, actions=actions, seed=seed)


def naive() -> Callable[[int], None]:
    """The naive loop at some positions: the whole network over the clip so far."""
    prior, (codes, actions) = big_prior(), clip_and_actions()

    @torch.no_grad()
    def run(seed: int) -> None:
        with plain_convolutions():
            for ahead, position in NAIVE_AT:
                frames = GIVEN + ahead + 1
                clip = torch.zeros(1, frames, *GRID, dtype=torch.int64, device=codes.device)
                clip[:, :GIVEN] = codes
                logits = prior(clip, actions=actions[:, :frames])[0, :, -1].flatten(1)[:, position]
                at = torch.tensor([position], device=codes.device)
                noise = gumbel(seed_of_frame(seed, frames - 1), torch.zeros_like(at), at, 512)
                (logits + noise[0, 0]).argmax()

    return run


def check(seed: int, outputs: Outputs) -> None:
    """The drawn codes maximise the logits plus the noise, but for rounding."""
    prior, (_, actions) = big_prior(), clip_and_actions()
    codes = outputs["vqfast"]
    with torch.no_grad():
        logits = prior(codes, actions=actions)[0].movedim(0, -1)[GIVEN:].flatten(1, 2).double()
    at = torch.arange(math.prod(GRID), device=codes.device)
    number = torch.zeros(1, dtype=torch.int64, device=codes.device)
    noise = [gumbel(seed_of_frame(seed, GIVEN + n), number, at, 512)[0] for n in range(DRAWN)]
    agree = ((logits + torch.stack(noise)).argmax(2) == codes[0, GIVEN:].flatten(1)).double().mean()
    assert agree > 0.99, f"{agree:.1%} of the codes are right"


CASE = Case(
    name="10 frames of 16x12 codes after 6, 128 channels, 15 layers, batch 1",
    shape={"batch": 1, "frames": DRAWN},
    contenders={"vqfast": sampler, "naive": naive},
    data=lambda: int(torch.randint(2**31, ())),
    check=check,
    parts={"naive": len(NAIVE_AT) / (DRAWN * math.prod(GRID))},
)
