"""A training step of a prior (forward, cross-entropy, backward, Adam) against the same in plain PyTorch.

Floor: the products of visible taps and 1x1 kernels, as often again for each gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.core import Call, Case, Floor, Outputs
from benchmarks.machine import DEVICE
from benchmarks.plain import PlainGated, PlainResidual
from benchmarks.sampling import flop
from vqfast import PixelCNN, ResidualPixelCNN
from vqfast.prior.base import CausalPrior

Make = Callable[[], CausalPrior]


def trainer(make: Make, make_plain: Callable[[], nn.Module] | None, compiled: bool = False) -> Call:
    """A step of ours, or of the plain model with the same weights."""
    model = make()
    if make_plain is not None:
        prior, model = model, make_plain()
        model.load(prior)
    model = model.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    forward = torch.compile(model) if compiled else model

    def step(codes: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(codes), codes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def check(make: Make, data: Tensor, outputs: Outputs) -> None:
    """Each loss is that of the model in float64."""
    torch.manual_seed(0)  # as the contenders' weights
    with torch.no_grad():
        want = F.cross_entropy(make().to(DEVICE).double()(data), data).item()
    for name, loss in outputs.items():
        assert abs(loss.item() - want) < 1e-3 * want, f"{name}: loss {loss.item()}, want {want}"


def training(
    name: str, make: Make, make_plain: Callable[[], nn.Module], k: int, shape: tuple[int, int, int]
) -> Case:
    """One step on codes of ``shape`` ``(B, H, W)`` below ``k``."""
    batch, *grid = shape
    return Case(
        name=f"{name}, {', '.join(map(str, shape))}",
        shape={"batch": batch, "grid": grid[0], "K": k},
        contenders={
            "vqfast": partial(trainer, make, None),
            "plain": partial(trainer, make, make_plain),
            "compiled": partial(trainer, make, make_plain, compiled=True),
        },
        data=lambda: torch.randint(k, shape, device=DEVICE),
        check=partial(check, make),
        floor=Floor(3 * batch * flop(make(), tuple(grid))),
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
