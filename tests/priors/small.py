"""Small priors of every kind, and what conditions them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.priors import PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet
from vqfast.priors.base import CausalPrior

PRIORS: dict[str, tuple[type[CausalPrior], dict[str, int]]] = {
    "gated": (PixelCNN, {"channels": 4, "num_layers": 3, "first_kernel_size": 5, "head_channels": 8}),
    "residual": (
        ResidualPixelCNN,
        {"channels": 8, "num_residual_blocks": 2, "num_layers": 1, "first_kernel_size": 5},
    ),
    "wavenet": (WaveNet, {"channels": 4, "num_layers": 4, "dilation_cycle": 3}),
    "snail": (
        PixelSNAIL,
        {"channels": 4, "num_blocks": 2, "num_layers": 1, "num_heads": 1}
        | {"first_kernel_size": 5, "head_channels": 8},
    ),
}
MakePrior = Callable[..., CausalPrior]
Conditioning = Callable[..., dict[str, Tensor]]
CONDITIONS = [{}, {"num_classes": 3}, {"condition_channels": 2}, {"num_classes": 3, "condition_channels": 2}]
BOTH = CONDITIONS[-1]
SHAPES = {"gated": (3, 4), "residual": (3, 4), "wavenet": (12,), "snail": (3, 4)}  # twelve codes each
SMALL = {"gated": (2, 2), "residual": (2, 2), "wavenet": (4,), "snail": (2, 2)}


def some_known(prior: CausalPrior, num: int, shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """Random codes, each kept with probability ``density``, the others -1."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(prior.num_embeddings, (num, *shape), generator=generator)
    return codes.where(torch.rand(codes.shape, generator=generator) < density, -1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out tests of the Triton executor on a CPU, unless its kernels are interpreted."""
    if not registry.interpreted():
        items[:] = [item for item in items if "triton" not in asked(item) or "gpu" in item.name]


def asked(item: pytest.Item) -> tuple[object, ...]:
    """The executors that a test runs."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("executor"), parameters.get("method")


@pytest.fixture(scope="session", params=PRIORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=[name for name in registry.TABLE["sampler"] if name != "reference"])
def executor(request: pytest.FixtureRequest) -> str:
    """Every executor but the reference."""
    return request.param


@pytest.fixture(scope="session")
def make_prior() -> Callable[..., CausalPrior]:
    """``make_prior(kind, **overrides)``: K = 5, float64, and weights large enough for codes to matter."""

    def make(kind: str, **overrides: Any) -> CausalPrior:
        torch.manual_seed(0)
        cls, small = PRIORS[kind]
        prior = cls(**{"num_embeddings": 5, **small, **overrides}).double().eval()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.mul_(1 if parameter.ndim == 1 else 2 if kind == "snail" else 3)
        return prior

    return make


@pytest.fixture(scope="session")
def conditioning() -> Callable[..., dict[str, Tensor]]:
    """``conditioning(prior, num, shape)``: random labels and a random map, where the prior takes them."""

    def make(prior: CausalPrior, num: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        given = {}
        if prior.num_classes:
            given["labels"] = torch.randint(prior.num_classes, (num,), generator=generator)
        if prior.condition_channels:
            size = (num, prior.condition_channels, *shape)
            given["condition"] = torch.randn(size, generator=generator, dtype=torch.float64)
        return given

    return make


@pytest.fixture(scope="session")
def random_codes() -> Callable[..., Tensor]:
    """``random_codes(prior, num, shape)``."""

    def make(prior: CausalPrior, num: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randint(prior.num_embeddings, (num, *shape), generator=generator)

    return make
