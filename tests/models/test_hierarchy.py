"""Models of several levels: shapes, codes, missing levels, files, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models import HierarchicalVQVAE

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], list[tuple[int, ...]]]] = {
    "two levels": ({}, (16, 24), [(2, 3), (4, 6)]),
    "three levels": ({"num_levels": 3, "decay": 0.9}, (16, 32), [(1, 2), (2, 4), (4, 8)]),
    "audio": ({"ndim": 1, "num_downsamplings": 3}, (32,), [(2,), (4,)]),
    "video": ({"ndim": 3, "num_downsamplings": 1}, (4, 4, 8), [(1, 1, 2), (2, 2, 4)]),
    "heads": ({"heads": 2, "codebook_dim": 3}, (8, 8), [(1, 1, 2), (2, 2, 2)]),
    "ruseckas": (
        {"architecture": "ruseckas-hierarchical", "num_levels": 3, "hidden_channels": 64, "image_size": 16},
        (16, 16),
        [(4, 4), (8, 8), (16, 16)],
    ),
}


def make(name: str, **others: Any) -> tuple[HierarchicalVQVAE, Tensor]:
    torch.manual_seed(0)
    options, spatial, _ = CASES[name]
    small = {"hidden_channels": 16, "num_embeddings": 7}
    if "architecture" not in options:
        small |= {"embedding_dim": 4, "residual_channels": 8}
    return HierarchicalVQVAE(**{**small, **options, **others}), torch.rand(3, 3, *spatial)


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_consistency(name: str) -> None:
    model, x = make(name)
    model.eval()
    with torch.no_grad():
        out = model(x)
    assert out.reconstruction.shape == x.shape and out.loss.ndim == 0
    assert [grid.shape for grid in out.indices] == [(3, *shape) for shape in CASES[name][2]]
    parts = len(CASES[name][0].get("ndim", 2) * "x")
    assert model.code_shapes(x.shape[2:]) == [shape[:parts] for shape in CASES[name][2]]
    for encoded in (model.encode(x), model.encode_levels(x)):
        assert all(torch.equal(a, b) for a, b in zip(encoded, out.indices, strict=True))
    torch.testing.assert_close(model.decode(out.indices), out.reconstruction)
    torch.testing.assert_close(model.decode_levels(out.indices), out.reconstruction)
    again = HierarchicalVQVAE(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert [vq.num_embeddings for vq in again.quantizers] == [7] * len(model.levels)


@pytest.mark.parametrize("name", CASES)
def test_training_lowers_the_loss_and_reaches_every_parameter(name: str) -> None:
    # codes that k-means starts on so few vectors have no gradient in the first step
    model, x = make(name, kmeans_init=False)
    x = x.flatten(2).cumsum(-1).sin().view(x.shape) / 2 + 0.5
    if model.architecture == "ruseckas-hierarchical":
        for level in model.levels:  # from zero, the gradient reaches neither the constant nor the first prior
            torch.nn.init.constant_(level.gamma, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(25):
        out = model(x)
        error = F.l1_loss(out.reconstruction, x)
        optimizer.zero_grad()
        (error + out.loss).backward()
        if step == 0:
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.any(), key
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.9 * losses[0], losses


def test_missing_levels_are_zero_vectors_in_vqvae2() -> None:
    model, x = make("three levels")
    top, middle, bottom = model.eval().encode(x)
    absent = [torch.full_like(grid, -1) for grid in (middle, bottom)]
    for some, all_three in (([top], [top, *absent]), ([top, middle], [top, middle, absent[1]])):
        # the same numbers, which lie otherwise in memory: convolutions may add them up in another order
        torch.testing.assert_close(model.decode(some), model.decode(all_three), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model.decode([top]), model.decode([top, middle]))


@pytest.mark.parametrize("name", ["three levels", "ruseckas"])
def test_items_in_training_keep_some_of_their_coarsest_levels(name: str) -> None:
    model, x = make(name, level_dropout=0.6)
    model.eval().training = True  # the layers neither learn nor take statistics
    x = x[:1].expand(300, *x.shape[1:])
    with torch.no_grad():
        out = model(x)
        grids = [grid[:1] for grid in out.indices]
        seen = torch.cat([model.decode(grids[:num]) for num in (1, 2, 3)])
    distances = (out.reconstruction.unsqueeze(1) - seen).abs().flatten(2).amax(2)
    assert (distances.amin(1) < 1e-5).all()
    shares = distances.argmin(1).bincount(minlength=3) / 300
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.3, 0.4]), rtol=0, atol=0.1)
    model.training = False
    torch.testing.assert_close(model(x[:1]).reconstruction, seen[2:])


def test_finer_codes_depend_on_coarser_ones_in_vqvae2() -> None:
    model, x = make("two levels")
    level, features = model.levels[1], model.encoder(x)[1]
    states = [model.levels[0].vq.decode(torch.full((3, 2, 3), code)) for code in (0, 1)]
    assert not torch.allclose(level.vectors(features, states[0]), level.vectors(features, states[1]))


def test_samples_follow_the_levels_priors() -> None:
    """Each level's codes are drawn from its logits given the coarser codes."""
    model, _ = make("ruseckas")
    model.eval()
    biases = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    for level, bias in zip(model.levels, biases, strict=True):
        torch.nn.init.zeros_(level.prior[-1].weight)
        level.prior[-1].bias.data.copy_(bias)
    for temperature in (1.0, 0.5):
        grids = model.sample(200, temperature=temperature, seed=1)
        for grid, bias, size in zip(grids, biases, (4, 8, 16), strict=True):
            assert grid.shape == (200, size, size)
            shares = grid.flatten().bincount(minlength=7) / grid.numel()
            torch.testing.assert_close(shares, (bias / temperature).softmax(0), rtol=0, atol=0.025)
    again, other = (model.sample(200, temperature=0.5, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(again, grids, strict=True))
    assert not torch.equal(other[0], grids[0])


def test_cold_samples_are_the_most_likely_codes() -> None:
    model, _ = make("ruseckas")
    grids = model.eval().sample(2, temperature=1e-6)
    torch.testing.assert_close(model.decode(grids[:1]), model.decode(grids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("two levels")[0].sample(2), "architecture is 'vqvae2'; want 'ruseckas-hierarchical'"),
        (lambda: make("ruseckas")[0].sample(0), "num is 0; want a positive integer"),
        (
            lambda: make("ruseckas")[0].sample(1, temperature=0),
            "temperature is 0; want a finite number, above",
        ),
        (lambda: make("ruseckas")[0].sample(1, seed=-1), "seed is -1; want an integer, 0 or more"),
    ],
)
def test_wrong_arguments_of_sample(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"architecture": "vqvae3"}, ValueError, "architecture is 'vqvae3'; want 'vqvae2' or 'ruseckas-hi"),
        ({"num_levels": 1}, ValueError, r"num_levels is 1; want an integer in 2\.\.31"),
        (
            {"level_dropout": 1.0},
            ValueError,
            "level_dropout is 1.0; want a finite number, 0 or more, below 1",
        ),
        ({"num_levels": 32}, ValueError, r"num_levels is 32; want an integer in 2\.\.31"),
        ({"image_size": 64}, ValueError, "image_size is 64; want None with architecture 'vqvae2'"),
        ({"channel_dim": 1}, TypeError, "got an unexpected argument 'channel_dim'"),
        (
            {"architecture": "ruseckas-hierarchical", "embedding_dim": 4},
            ValueError,
            "embedding_dim is 4; want None with architecture 'ruseckas-hierarchical'",
        ),
        (
            {"architecture": "ruseckas-hierarchical", "hidden_channels": 16},
            ValueError,
            r"hidden_channels is 16; want a multiple of 2 \*\* 5 = 32",
        ),
        (
            {"architecture": "ruseckas-hierarchical", "image_size": 100},
            ValueError,
            r"image_size is 100; want a multiple of 2 \*\* 5 = 32",
        ),
        (
            {"architecture": "ruseckas-hierarchical", "heads": 2},
            ValueError,
            "heads is 2; want 1 with architecture 'ruseckas-hierarchical'",
        ),
        ({"architecture": "ruseckas-hierarchical", "ndim": 1}, ValueError, "ndim is 1; want 2 with"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HierarchicalVQVAE(**options)


def test_bad_inputs() -> None:
    model, x = make("two levels")
    with pytest.raises(ValueError, match=r"spatial is \(16, 20\); want 2 positive multiples of the stride 8"):
        model(x[..., :20])
    ruseckas, image = make("ruseckas")
    for call in (ruseckas, ruseckas.encode):
        with pytest.raises(ValueError, match=r"is \(16, 8\); want \(16, 16\), the model's image_size"):
            call(image[..., :8])
    top, bottom = model.encode(x)
    for wrong, error, message in [
        (top, TypeError, "indices is a Tensor; want a list, one tensor for each level"),
        (None, TypeError, "indices is a NoneType; want a list"),
        ([], ValueError, r"indices has 0 levels; want 1\.\.2"),
        ([top, bottom, bottom], ValueError, r"indices has 3 levels; want 1\.\.2"),
        ([[0]], TypeError, r"indices\[0\] is a list; want a tensor"),
        ([top[0]], ValueError, r"indices\[0\] has shape \(2, 3\): spatial is \(24,\); want 2 positive"),
        ([top[:0]], ValueError, r"indices\[0\] has shape \(0, 2, 3\); want \(0, 2, 3\), not empty"),
        ([top, top], ValueError, r"indices\[1\] has shape \(3, 2, 3\); want \(3, 4, 6\), not empty"),
        ([top, bottom[:1]], ValueError, r"indices\[1\] has shape \(1, 4, 6\); want \(3, 4, 6\), not empty"),
        ([top, bottom + 7], ValueError, r"indices has values .*; want -1\.\.6"),
        ([top.float()], TypeError, "indices has dtype torch.float32; want an integer"),
    ]:
        with pytest.raises(error, match=message):
            model.decode(wrong)
