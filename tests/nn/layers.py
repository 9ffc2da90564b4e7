"""Layers, options and data of the tests of ``VQLayer``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vqfast.nn import VQLayer

RULES = pytest.mark.parametrize("decay", [None, 0.9])
STILL = {"kmeans_init": False, "revive_below": 0.0}  # without a start by k-means and revival
OPTIONS = {
    "plain": {},
    "ema": {"decay": 0.9},
    "cosine": {"metric": "cosine"},
    "cosine ema": {"metric": "cosine", "decay": 0.9},
    "shared heads": {"heads": 2, "decay": 0.9},
    "separate heads": {"heads": 2, "separate_codebooks": True},
    "separate ema": {"heads": 2, "separate_codebooks": True, "decay": 0.9, "metric": "cosine"},
    "projected": {"codebook_dim": 3, "decay": 0.9},
    "projected heads": {"codebook_dim": 3, "heads": 3, "separate_codebooks": True},
    "revival": {"revive_below": 0.5, "decay": 0.9},
    "gradient revival": {"revive_below": 0.5, "heads": 2, "separate_codebooks": True},
    "rotation": {"gradient": "rotation", "decay": 0.9},
}
ALL = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def layer(num_embeddings: int = 9, embedding_dim: int = 4, **options) -> VQLayer:
    """In float64, with codes as far apart as the vectors that ``torch.randn`` draws."""
    vq = VQLayer(num_embeddings, embedding_dim, **{**STILL, **options}).double()
    vq.set_codebook(torch.randn(vq.codebook.shape))
    return vq


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_states_close(one: torch.nn.Module, other: torch.nn.Module, atol: float = 1e-12) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=atol, msg=name)


def assert_copies_continue(make: Callable[[], torch.nn.Module]) -> None:
    """A copied, a pickled and a loaded layer learn on from a batch to the same bits as the original."""
    original = make()
    original(torch.randn(20, 6))
    loaded = make()
    loaded.load_state_dict(original.state_dict())
    batch = torch.randn(20, 6)
    states = []
    for one in (original, copy.deepcopy(original), pickle.loads(pickle.dumps(original)), loaded):
        torch.manual_seed(5)
        one(batch)
        states.append(one.state_dict())
    for name, value in states[0].items():
        assert all(torch.equal(value, other[name]) for other in states[1:]), name
