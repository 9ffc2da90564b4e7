"""ReLUs in place change no bit of a training."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from vqfast.models import VQVAE, HierarchicalVQVAE

SMALL = {
    "paper": ({"hidden_channels": 8}, (3, 16, 16), 8),
    "paper-speech-mirrored": ({"hidden_channels": 8}, (1, 128), 16),
    "paper-video": ({"hidden_channels": 8}, (3, 2, 8, 8), 8),
    "paper-video-halved": ({"hidden_channels": 8}, (3, 4, 8, 8), 8),
    "keras": ({"hidden_channels": 16}, (1, 28, 28), 2),
    "ruseckas": ({"hidden_channels": 32}, (3, 32, 32), 0),
    "vqvae2": ({"hidden_channels": 8}, (3, 16, 16), 16),
}


def relus(model: nn.Module) -> list[nn.ReLU]:
    return [module for module in model.modules() if isinstance(module, nn.ReLU)]


@pytest.mark.parametrize("name", SMALL)
def test_a_step_has_the_same_bits(name: str) -> None:
    options, shape, count = SMALL[name]
    torch.manual_seed(0)
    kind = HierarchicalVQVAE if name == "vqvae2" else VQVAE
    model = kind.named(name, num_embeddings=16, **options)
    plain = deepcopy(model)
    for module in relus(plain):
        module.inplace = False
    x = torch.rand(2, *shape)
    before = x.clone()
    outputs = []
    for each in (model, plain):
        torch.manual_seed(1)  # a codebook that starts from data draws its vectors
        out = each(x)
        (out.reconstruction.square().mean() + out.loss).backward()
        outputs.append(out.reconstruction)
    assert torch.equal(*outputs) and torch.equal(x, before)
    assert sum(module.inplace for module in relus(model)) == count
    for (parameter, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), parameter
        assert one.grad is None or torch.equal(one.grad, two.grad), parameter
