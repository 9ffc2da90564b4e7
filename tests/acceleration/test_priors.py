"""accelerate names the priors in a model, and no other network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vqfast
from benchmarks.plain import PlainGated, PlainMasked
from tests.sampling.trace import networks


class GatedPixelCNN(PlainGated):
    """A prior by its name; its convolutions are padded and cropped."""


class PixelShuffleUNet(nn.Module):
    """No prior: convolutions with masks of other kinds, as of sparse or partial convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3) for _ in range(4))
        masks = [torch.ones(4, 4, 3, 3), torch.eye(3).expand(4, 4, 3, 3), torch.ones(1, 1, 8, 8)]
        for conv, mask in zip(self.convs, masks, strict=False):
            conv.register_buffer("mask", mask)


def test_priors_are_named_by_their_paths() -> None:
    masked = nn.Sequential(
        PlainMasked(1, 4, 7, "A"), nn.ReLU(), PlainMasked(4, 4, 3, "B"), nn.Conv2d(4, 9, 1)
    )
    model = nn.ModuleDict({"decoder": nn.Conv2d(4, 4, 3), "top": GatedPixelCNN(8, 4, 2), "bottom": masked})
    before = copy.deepcopy(model.state_dict())
    report = vqfast.accelerate(model)
    assert report == ([], [], ["top", "bottom"])
    assert str(report).splitlines()[1:] == ["  top", "  bottom"]
    assert "vqfast.program_of(call, num_embeddings, shape)" in str(report)
    assert vqfast.accelerate(model["top"]).priors == [""]
    assert "the model" in str(vqfast.accelerate(masked))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert vqfast.accelerate(model, restore=True) == ([], [], [])
    prior = vqfast.program_of(model["top"].eval(), 8, (3, 4))  # as the report says
    assert prior.sample(2, (3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize(
    "model",
    [
        PixelShuffleUNet(),
        nn.Sequential(PlainMasked(1, 4, 7, "A"), nn.Conv2d(4, 4, 3)),
        nn.Transformer(8, 2, 1, 1, 8),
        vqfast.PixelCNN(8, 4, 2),
        vqfast.WaveNet(8, 4),
        networks.Dilated(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_networks_are_no_priors(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no known quantiser"):
        vqfast.accelerate(model)
