"""A training step of a prior (forward, cross-entropy, backward, Adam) against the same in plain PyTorch.

Floor: the products of visible taps and 1x1 kernels, once forward and once for each of the two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import core
from benchmarks.core import Call, Case, Floor, Outputs
from benchmarks.machine import DEVICE
from benchmarks.plain import PlainGated, PlainResidual
from benchmarks.sampling import floor
from vqfast import PixelCNN, ResidualPixelCNN
from vqfast.priors.base import CausalPrior

Make = Callable[[], CausalPrior]
MakePlain = Callable[[], PlainGated | PlainResidual]


def with_weights(make: Make, make_plain: MakePlain) -> nn.Module:
    """The plain model with the prior's weights."""
    prior, plain = make(), make_plain()
    plain.load(prior)
    return plain


def trainer(make: Callable[[], nn.Module], compiled: bool = False) -> Call:
    """A training step."""
    model = make().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    forward = core.compiled(model) if compiled else model

    def step(codes: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(codes), codes)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach(), *gradients(model)

    return step


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, in the order of their names."""
    found = [parameter.grad for _, parameter in sorted(model.named_parameters())]
    return [grad for grad in found if grad is not None]


def check(make: Make, data: Tensor, outputs: Outputs) -> None:
    """Loss and gradients equal float64's. Plain weights that have more taps than the prior's are left out."""
    torch.manual_seed(0)  # as the contenders' weights
    model = make().to(DEVICE).double()
    want = F.cross_entropy(model(data), data)
    torch.autograd.backward(want)
    for name, output in outputs.items():
        for got, true in zip(output, (want.detach(), *gradients(model)), strict=True):
            if got.shape == true.shape:  # by norm: rounding decides whether a ReLU near zero passes
                off = ((got - true).norm() / true.norm()).item()
                assert off < 1e-2, (
                    f"{name}: a loss or gradient of shape {tuple(got.shape)} is off by {off:.1%}"
                )


def training(name: str, make: Make, make_plain: MakePlain, k: int, shape: tuple[int, int, int]) -> Case:
    """One step on codes of ``shape`` ``(B, H, W)`` below ``k``."""
    batch, *grid = shape
    plain = partial(with_weights, make, make_plain)
    return Case(
        name=f"{name}, {', '.join(map(str, shape))}",
        shape={"batch": batch, "grid": grid[0], "K": k},
        contenders={
            "vqfast": partial(trainer, make),
            "plain": partial(trainer, plain),
            "compiled": partial(trainer, plain, compiled=True),
        },
        data=lambda: torch.randint(k, shape, device=DEVICE),
        check=partial(check, make),
        floor=Floor(3 * floor(make(), batch, tuple(grid)).flop),
        slow=["compiled"],
    )


def gated(k: int, channels: int, layers: int, shape: tuple[int, int, int]) -> Case:
    """The gated PixelCNN."""
    make, make_plain = partial(PixelCNN, k, channels, layers), partial(PlainGated, k, channels, layers)
    return training(f"gated, {channels} channels, {layers} layers, K {k}", make, make_plain, k, shape)


def keras(k: int, channels: int, shape: tuple[int, int, int]) -> Case:
    """The Keras example's prior."""
    make, make_plain = partial(ResidualPixelCNN, k, channels), partial(PlainResidual, k, channels)
    return training(f"Keras, {channels} channels, K {k}", make, make_plain, k, shape)


CASES = [gated(512, 128, 15, (8, 32, 32)), keras(128, 128, (128, 7, 7))]
