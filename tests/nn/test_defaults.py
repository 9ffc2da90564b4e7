"""A layer as it is made with its defaults trains on features of any place and size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from vqfast.nn import ResidualVQLayer, VQLayer
from vqfast.nn.kmeans import START_LIMIT, kmeans_of_ranks

K, D = 32, 8
FEATURES = {
    "offset": lambda *shape: torch.randn(shape) + 5,
    "tiny": lambda *shape: torch.randn(shape) * 1e-3,
    "huge": lambda *shape: torch.randn(shape) * 1e3,
    "mixture": lambda *shape: 10 * torch.randint(2, shape).float() + torch.randn(shape),
}


def train(vq: VQLayer | ResidualVQLayer, features: Tensor, steps: int, lr: float = 1e-4) -> Tensor:
    """The codes after ``steps`` steps."""
    weights = list(vq.parameters())
    optimizer = torch.optim.Adam(weights, lr) if weights else None
    for _ in range(steps):
        loss = vq(features).loss
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return vq.eval().encode(features)


@pytest.mark.parametrize("decay", [None, 0.99])
@pytest.mark.parametrize("spatial", [(40,), (6, 7), (3, 4, 4)])
@pytest.mark.parametrize("kind", FEATURES)
def test_no_features_collapse(kind: str, spatial: tuple[int, ...], decay: float | None) -> None:
    vq, features = VQLayer(K, D, decay=decay), FEATURES[kind](8, D, *spatial)
    codes = train(vq, features, 20)
    assert vq.perplexity(codes) > K / 2
    variance = features.movedim(1, -1).flatten(0, -2).var(0).mean()
    assert (vq.decode(codes) - features).square().mean() < 0.8 * variance


def test_a_residual_layer_does_not_collapse_either() -> None:
    vq, features = ResidualVQLayer(K, D, 3), FEATURES["offset"](8, D, 40)
    assert (vq.perplexity(train(vq, features, 20)) > K / 2).all()


@pytest.mark.parametrize("decay", [None, 0.99])
def test_codes_follow_features_that_move_away(decay: float | None) -> None:
    vq = VQLayer(K, D, decay=decay)
    for step in range(100):
        codes = vq(torch.randn(500, D) + 0.1 * step).indices
    assert vq.perplexity(codes) > 4
    still = VQLayer(K, D, revive_below=0)
    for step in range(100):
        codes = still(torch.randn(500, D) + 0.1 * step).indices
    assert still.perplexity(codes) < 2


def test_before_training_a_layer_uses_its_random_codes_and_stays_as_it_is() -> None:
    vq, features = VQLayer(K, D).eval(), torch.randn(20, D)
    before = copy.deepcopy(vq.state_dict())
    quantized, indices, _ = vq(features)
    assert torch.equal(vq.encode(features), indices) and torch.equal(vq.decode(indices), quantized)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    assert not vq.initialised
    vq.train()(features)
    assert vq.initialised


def test_few_codes_that_cannot_reach_the_default_revive_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    VQLayer(64, 4)(torch.randn(3, 4))
    assert not recwarn


def test_codes_that_few_vectors_do_not_use_are_soon_replaced() -> None:
    vq, features = VQLayer(64, D, kmeans_init=False), torch.randn(32, D)
    for _ in range(30):
        codes = vq(features).indices
    assert vq.perplexity(codes) > 16


@pytest.mark.parametrize("decay", [None, 0.95])
def test_codes_that_few_vectors_start_are_soon_replaced(decay: float | None) -> None:
    vq = VQLayer(256, D, decay=decay)
    vq(torch.randn(64, D))
    for _ in range(16):
        codes = vq(torch.randn(64, D) + 10).indices
    assert vq.perplexity(codes) > 16


@pytest.mark.parametrize("num", [10, START_LIMIT + 100])
def test_kmeans_starts_on_a_limited_number_of_vectors(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def kmeans(vectors: Tensor, num: int, **_: object) -> Tensor:
        seen.append(len(vectors))
        return vectors[:num].clone()

    monkeypatch.setattr("vqfast.nn.kmeans.kmeans", kmeans)
    start = torch.zeros(4, 2)
    kmeans_of_ranks(torch.randn(num, 1, 2), None, start, start, False)
    assert seen == [min(num, START_LIMIT)]
