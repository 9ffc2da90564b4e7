"""Classes in plain PyTorch that differ from a quantiser of vqfast, or are none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vqfast
from tests.acceleration.compare import same
from tests.acceleration.quantisers import Base, ChannelsLast, D, K


class CosineQuantizer(Base):
    def search(self, flat):
        return (F.normalize(flat) @ F.normalize(self.embedding.weight).T).argmax(1)

    forward = ChannelsLast.forward


class SummedQuantizer(Base):
    def forward(self, z):
        z_q = self.embedding(self.search(z.reshape(-1, D))).view_as(z)
        return z + (z_q - z).detach(), F.mse_loss(z_q, z, reduction="sum")


class NoisyQuantizer(ChannelsLast):
    def forward(self, z):
        z_q, loss = super().forward(z)
        return z_q + torch.rand_like(z_q) if self.training else z_q, loss


class RestartingQuantizer(ChannelsLast):
    def forward(self, z):
        returned = super().forward(z)
        if self.training:
            self.embedding.weight.data[0] = z.detach().reshape(-1, D)[0]
        return returned


class CountingQuantizer(ChannelsLast):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        return super().forward(z)


class QuantizerOfTwo(Base):
    def forward(self, z, mask):
        return z


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (CosineQuantizer, "it returns a value that no search of nearest codes gives"),
        (SummedQuantizer, "its outputs, gradients or state differ from those of vqfast on probe batches"),
        (CountingQuantizer, "a call changes its attributes"),
        (QuantizerOfTwo, "none of its methods takes one tensor of vectors"),
    ],
)
def test_others_are_left_alone_with_a_reason(cls, reason):
    module = cls()
    state = copy.deepcopy(module.state_dict())
    report = vqfast.accelerate(module)
    assert not report.accelerated and type(module) is cls
    assert reason in report.left_alone[0].note
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (NoisyQuantizer, "returns a value that no search"),
        (RestartingQuantizer, "moves embedding.weight by another rule than a moving average"),
    ],
)
def test_a_mode_that_differs_keeps_its_own_code(cls, reason):
    fast = same(cls(), [torch.randn(2, 4, 5, D)], modes=(False,))
    (entry,) = vqfast.accelerate(fast).accelerated
    assert entry.note.startswith("forward in training keeps its own code") and reason in entry.note


def test_modules_that_are_no_quantisers_arent_mentioned():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(K, D)

        def forward(self, x):
            return x + self.table(torch.arange(x.shape[-2]))

    class OwnPositions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Parameter(torch.randn(K, D))

        def forward(self, x):
            return x + self.embed[: x.shape[-2]]

    class Uncopied(OwnPositions):
        def __deepcopy__(self, memo):
            raise RuntimeError

    model = nn.Sequential(nn.Linear(4, D), Positions(), OwnPositions(), Uncopied(), nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="no known quantiser"):
        vqfast.accelerate(model)
