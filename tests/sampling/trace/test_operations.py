"""Single operations of traced networks, each between layers of a causal network, and small grids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sampling.trace.networks import K
from vqfast import program_of

BOUNDS = torch.tensor([-0.1, 0.1, -0.2, 0.2]).double().view(4, 1, 1)


def columns(x: Tensor) -> Tensor:
    return torch.arange(x.shape[3]).to(x)


def larger(x: Tensor) -> Tensor:
    """A map of more columns than the grid is added, then all is cropped."""
    return (F.pad(x, (0, 2, 0, 1)) + torch.arange(x.shape[3] + 2).to(x) / 3)[:, :, :-1, :-2]


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lower bounds": lambda x: x.clamp(min=BOUNDS),
    "upper bounds": lambda x: x.clamp(max=BOUNDS) + torch.minimum(x, -x),
    "both bounds": lambda x: x.clamp(BOUNDS, BOUNDS + 0.3) - x.clamp(max=0.3) / 2,
    "PReLU": nn.PReLU(4).double(),
    "approximate GELU": nn.GELU("tanh"),
    "cube": lambda x: x**3 + x,
    "product with a map": lambda x: x * columns(x) / 4,
    "quotient by a map": lambda x: x / (1 + columns(x)),
    "larger map": larger,
    "root": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 0.1),
    "RMS": lambda x: F.rms_norm(x.movedim(1, 3), (4,)).movedim(3, 1),
}


class Network(nn.Module):
    """The two rows above and the codes to the left, an operation, and an attention if there are heads."""

    def __init__(self, operation: Callable[[Tensor], Tensor] | None = None, heads: int = 0) -> None:
        super().__init__()
        self.operation, self.heads = operation, heads
        self.embedding = nn.Embedding(K, 4)
        self.above, self.left = nn.Conv2d(4, 4, (2, 3)), nn.Conv2d(4, 4, (1, 2))
        self.qkv, self.head = nn.Linear(4, 12), nn.Conv2d(4, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).movedim(3, 1)
        x = self.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1] + self.left(F.pad(x, (2, 0)))[..., :-1]
        x = x if self.operation is None else self.operation(x)
        if self.heads:
            parts = self.qkv(x.flatten(2).mT).chunk(3, dim=2)
            query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
            mean = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + mean.transpose(1, 2).flatten(2).mT.reshape(x.shape)
        return self.head(F.relu(x))


def draws_what_its_loop_draws(
    network: nn.Module, *shapes: tuple[int, int], several: int | None = None
) -> None:
    prior = program_of(network.double().eval(), K, shapes[0], num_quantizers=several)
    for shape in shapes:
        assert torch.equal(prior.sample(3, shape), prior.sample(3, shape, method="reference"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_that_of_the_network(name: str) -> None:
    torch.manual_seed(0)
    draws_what_its_loop_draws(Network(OPERATIONS[name]), (3, 4), (4, 6))


@pytest.mark.parametrize("shape", [(4, 1), (1, 1), (1, 2), (1, 5)])
@pytest.mark.parametrize("heads", [0, 1, 2])
def test_grid_of_a_single_row_or_column(shape: tuple[int, int], heads: int) -> None:
    torch.manual_seed(0)
    draws_what_its_loop_draws(Network(heads=heads), shape, (3, 4))


def test_constant_logits_are_causal() -> None:
    network = Network()
    nn.init.zeros_(network.head.weight)
    draws_what_its_loop_draws(network, (3, 4))


class FirstConstant(Network):
    """Two codes at each position; the first has the same logits everywhere, the second sees the first."""

    def forward(self, codes: Tensor) -> Tensor:
        first = self.embedding(codes[..., 0])
        logits = [self.head.bias.expand(*first.shape[:3], K), F.linear(first, self.head.weight[:, :, 0, 0])]
        return torch.stack(logits, dim=-1).log_softmax(3).movedim(3, 1)


def test_a_first_code_with_constant_logits_is_causal() -> None:
    torch.manual_seed(0)
    draws_what_its_loop_draws(FirstConstant(), (2, 3), several=2)
