"""Code vectors and random codes, decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vqfast import ResidualVQLayer
from vqfast.models import VQVAE, Autoencoder, HierarchicalVQVAE
from vqfast.pipeline.pictures import decoded_at_random, decoded_codebook

SMALL: dict[str, Any] = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}


def models() -> dict[str, Autoencoder]:
    torch.manual_seed(0)
    return {
        "plain": VQVAE(**SMALL),
        "heads": VQVAE(**SMALL, heads=2),
        "stages": VQVAE(hidden_channels=8, quantizer=ResidualVQLayer(16, 4, 3)),
        "levels": HierarchicalVQVAE.named("vqvae2", **SMALL),
        "fixed": HierarchicalVQVAE.named(
            "ruseckas-hierarchical", hidden_channels=32, num_levels=2, image_size=32, num_embeddings=16
        ),
        "video": VQVAE(**SMALL, ndim=3),
        "speech": VQVAE.named("paper-speech-mirrored", **SMALL),
    }


@pytest.mark.parametrize("name", models())
@torch.no_grad()
def test_shapes(name: str) -> None:
    model = models()[name].eval()
    size = {"fixed": 32, "speech": 64}.get(name, 16)
    for level in range(len(model.strides)):
        items = decoded_codebook(model, torch.tensor([3, 0, 15]), level=level)
        assert items.shape == (3, model.in_channels, *[size] * model.ndim)
        assert items.min() >= 0 and items.max() <= 1
    items = decoded_at_random(model, [64] * model.ndim if name != "fixed" else [32, 32], 2)
    assert items.shape[:2] == (2, model.in_channels)


@torch.no_grad()
def test_code_vectors() -> None:
    model = models()["plain"].eval()
    assert isinstance(model, VQVAE)
    expected = model.decode(torch.full((1, 4, 4), 5)).clamp(0, 1)
    assert torch.equal(decoded_codebook(model, torch.tensor([5])), expected)
    many = decoded_codebook(model, torch.arange(16).repeat(10))
    assert len(many) == 160
    torch.testing.assert_close(many[5:6], expected)
    levels = models()["levels"].eval()
    grids = [torch.full((1, 2, 2), 7), torch.full((1, 4, 4), 5)]
    found = decoded_codebook(levels, torch.tensor([5]), level=1, coarser=[7])
    assert torch.equal(found, levels.decode_levels(grids).clamp(0, 1))
    stages = models()["stages"].eval()
    assert isinstance(stages, VQVAE)
    vectors = stages.vq.decode(torch.tensor([5, -1, -1]).expand(1, 4, 4, 3))
    assert torch.equal(decoded_codebook(stages, torch.tensor([5])), stages.decoder(vectors).clamp(0, 1))


@torch.no_grad()
def test_random_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models()["plain"].eval()
    seen: list[torch.Tensor] = []

    def decode_levels(levels: list[torch.Tensor]) -> torch.Tensor:
        seen.extend(levels)
        return torch.zeros(len(levels[0]))

    monkeypatch.setattr(model, "decode_levels", decode_levels)
    decoded_at_random(model, [32, 32], 200, seed=3)
    codes = torch.cat(seen)
    assert codes.shape == (200, 8, 8)
    counts = codes.flatten().bincount(minlength=16)
    assert len(counts) == 16 and counts.min() > 0.8 * 800 and counts.max() < 1.2 * 800


def test_refused() -> None:
    model = models()["plain"]
    with pytest.raises(ValueError, match="level is 1; want an integer in"):
        decoded_codebook(model, torch.tensor([0]), level=1)
    with pytest.raises(ValueError, match="coarser has 1 codes; want 0"):
        decoded_codebook(model, torch.tensor([0]), coarser=[1])
    with pytest.raises(ValueError, match="seed is -1"):
        decoded_at_random(model, [16, 16], 1, seed=-1)
