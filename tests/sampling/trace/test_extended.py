"""Networks whose input is padded by a whole receptive field: their values begin before the grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast import program_of

K = 5


class Valid(nn.Module):
    """Dilated convolutions without padding; what lies before the sequence is a constant of each layer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv1d(K, 6, 2, bias=bias)
        self.convs = nn.ModuleList(nn.Conv1d(6, 12, 2, dilation=d, bias=bias) for d in (1, 2))
        self.outputs = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2))
        self.head = nn.Conv1d(6, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.one_hot(codes, K).mT.to(self.head.weight.dtype)
        x = self.first(F.pad(x, (5, 0)))[..., :-1]
        for conv, output in zip(self.convs, self.outputs, strict=True):
            a, b = conv(x).chunk(2, dim=1)
            h = output(a.tanh() * b.sigmoid())
            x = F.elu(h) + x[..., -h.shape[2] :]
        return self.head(x)


class ValidImage(nn.Module):
    """Rows above the grid and columns before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K + 1, 4, padding_idx=0)
        self.first, self.second = nn.Conv2d(4, 6, (2, 2)), nn.Conv2d(6, 6, (2, 2))
        self.head = nn.Conv2d(6, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes + 1).permute(0, 3, 1, 2)
        x = torch.sigmoid(self.first(F.pad(x, (3, 0, 3, 0))))
        return self.head(torch.relu(self.second(x)))[:, :, :-1, :-1]


@pytest.mark.parametrize(
    ("network", "grid"),
    [(Valid(), (9,)), (Valid(bias=False), (7,)), (ValidImage(), (3, 4))],
    ids=["bias", "no bias", "image"],
)
def test_program_is_the_network_before_the_grid_too(network: nn.Module, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.double().eval().parameters():
            parameter.normal_(std=0.7)
        if isinstance(network, ValidImage):
            network.embedding.weight[0] = 0
    prior = program_of(network, K, grid)
    expected = prior.sample(4, grid, method="reference")
    assert torch.equal(prior.sample(4, grid), expected) and len(expected.unique(dim=0)) > 1
    if isinstance(network, Valid):
        assert len(prior.lower()[0].steps) <= 8
