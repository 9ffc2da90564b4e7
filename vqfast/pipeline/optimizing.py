"""How weights move: the optimiser, and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from vqfast.pipeline.options import Training

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
BETAS = (0.9, 0.999)

# after the warm-up: the share of the training that is done -> what the learning rate is multiplied by
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
    "constant": lambda share: 1.0,
}
# of torch's OneCycleLR: the share of the training in which the rate rises, the rate at the start and at the
# end, and Adam's first beta at both ends and at the peak
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4
OUTER_BETA, PEAK_BETA = 0.95, 0.85


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Adam:
    """Adam or AdamW of all parameters."""
    kind = OPTIMIZERS[training.optimizer]
    return kind(model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True)


def set_rates(optimizer: torch.optim.Adam, training: Training, step: int, steps: int) -> None:
    """Sets the learning rate, and Adam's betas, for a step of so many."""
    if training.schedule == "onecycle":
        factor, beta = _onecycle(step, steps)
    else:
        factor, beta = _decayed(training, step, steps), BETAS[0]
    for group in optimizer.param_groups:
        group |= {"lr": training.lr * factor, "betas": (beta, BETAS[1])}


def _decayed(training: Training, step: int, steps: int) -> float:
    if step < training.warmup:
        return (step + 1) / (training.warmup + 1)
    return DECAYS[training.schedule]((step - training.warmup) / (steps - training.warmup))


def _onecycle(step: int, steps: int) -> tuple[float, float]:
    """The factor of the learning rate, and the first beta: Smith and Topin 2017, arXiv 1708.07120."""
    peak = RISE * steps - 1
    if step <= peak:
        share = (1 - math.cos(math.pi * step / peak)) / 2
        return FIRST + (1 - FIRST) * share, OUTER_BETA + (PEAK_BETA - OUTER_BETA) * share
    share = (1 + math.cos(math.pi * (step - peak) / (steps - 1 - peak))) / 2
    return LAST + (1 - LAST) * share, OUTER_BETA + (PEAK_BETA - OUTER_BETA) * share
