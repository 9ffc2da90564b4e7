"""Networks that return mixtures of logistic distributions: their codes stand for values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import logistic
from torch import Tensor, nn

from tests.sampling.chi_square import p_value
from vqfast import program_of
from vqfast.ops import registry
from vqfast.priors.base import CausalPrior
from vqfast.sampling import CONDITION, Program, Step, Term
from vqfast.sampling.draw import gumbel

M = 3


def values(codes: Tensor, num_embeddings: int) -> Tensor:
    return codes.double() * (2 / (num_embeddings - 1)) - 1


class Sound(nn.Module):
    """Samples of a sequence: causal convolutions of values."""

    def __init__(self, num_embeddings: int, num_mixtures: int = M) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.conv = nn.Conv1d(1, 8, 3)
        self.head = nn.Conv1d(8, 3 * num_mixtures, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = values(codes, self.num_embeddings)[:, None]
        x = self.head(torch.tanh(self.conv(nn.functional.pad(x, (3, 0))[:, :, :-1])))
        weights, means, log_scales = x.chunk(3, dim=1)
        return torch.cat([weights, means, log_scales.clamp(min=-3)], dim=1)


class Image(nn.Module):
    """Colours: the mean of each depends on the position's earlier values, all have one component."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.left = nn.Conv2d(3, 8, (2, 3)), nn.Conv2d(3, 8, (1, 2))
        self.head = nn.Conv2d(8, 10 * M, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = values(codes, 256).movedim(-1, 1)
        above = self.above(nn.functional.pad(x, (1, 1, 2, 0))[:, :, :-1])
        h = torch.tanh(above + self.left(nn.functional.pad(x, (2, 0, 0, 0))[..., :-1]))
        weights, rest = self.head(h).split([M, 9 * M], dim=1)
        means, log_scales, coefficients = rest.unflatten(1, (3, 3, M)).unbind(2)
        a, b, c = coefficients.tanh().unbind(1)
        red, green, _ = x[:, :, None].unbind(1)
        moved = [means[:, 0], means[:, 1] + a * red, means[:, 2] + b * red + c * green]
        colours = [torch.cat([weights, mean, log_scales[:, s] - 1], 1) for s, mean in enumerate(moved)]
        return torch.stack(colours, dim=-1)


def made(network: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in network.double().eval().parameters():
        with torch.no_grad():
            parameter.normal_(std=0.6)
    if isinstance(network, Image):
        return program_of(network, 256, (3, 4), num_quantizers=3, num_mixtures=M)
    return program_of(network, network.num_embeddings, (9,), num_mixtures=M)


@pytest.fixture(scope="module")
def priors() -> dict[str, Any]:
    return {"8 bits": made(Sound(256)), "16 bits": made(Sound(65536)), "colours": made(Image())}


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "colours"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5, "seed": 7}, {"temperature": 0}, {"top_k": 2, "top_p": 0.6}], ids=str
)
def test_executor_draws_what_the_naive_sampler_draws(
    priors: dict[str, Any], executor: str, kind: str, options: dict[str, Any]
) -> None:
    prior = priors[kind]
    grid = (2, 3) if kind == "colours" else (7,)
    expected = prior.sample(4, grid, method="reference", **options)
    assert torch.equal(prior.sample(4, grid, method=executor, batch_size=3, **options), expected)
    known = expected.clone()
    known[:, 1:] = -1
    known[1].view(-1)[5] = 200
    expected = prior.sample(4, grid, known=known, method="reference", **options)
    assert torch.equal(prior.sample(4, grid, known=known, method=executor, **options), expected)
    assert torch.equal(expected[known >= 0], known[known >= 0])


@torch.no_grad()
def test_draw_is_the_loop_of_the_networks_users(executor: str) -> None:
    """A Gumbel maximum chooses the component, the inverse of the distribution function the value."""
    network = Image()
    prior = made(network)
    drawn = prior.sample(5, (2, 2), method=executor)
    parameters = network(drawn)
    noise = gumbel(0, torch.arange(5), torch.arange(12), M + 1)
    for number, (y, x, s) in enumerate(np.ndindex(2, 2, 3)):
        weights, means, log_scales = parameters[:, :, y, x, s].chunk(3, 1)
        component = (weights + noise[:, number - s, :M]).argmax(1, keepdim=True)
        u = np.exp(-np.exp(-noise[:, number, M].numpy()))
        value = logistic.ppf(
            u, means.gather(1, component)[:, 0].numpy(), log_scales.gather(1, component)[:, 0].exp().numpy()
        )
        want = np.floor((np.clip(value, -1, 1) + 1) * 127.5 + 0.5)
        assert (drawn[:, y, x, s].numpy() == want).all()


def probabilities(parameters: Tensor, num_embeddings: int) -> np.ndarray:
    """Of each code, ``(K,)``, under a mixture ``(3 M,)``."""
    weights, means, log_scales = parameters.chunk(3)
    edges = values(torch.arange(num_embeddings + 1) - 0.5, num_embeddings)[:, None].numpy()
    below = logistic.cdf(edges, means.numpy(), log_scales.exp().numpy())
    below[0], below[-1] = 0, 1
    return np.diff(below, axis=0) @ weights.softmax(0).numpy()


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@torch.no_grad()
def test_codes_have_the_probabilities_of_the_discretised_mixture(method: str) -> None:
    network = Sound(8)
    drawn = made(network).sample(20_000, (1,), method=method, batch_size=20_000)
    counts = torch.bincount(drawn[:, 0], minlength=8).numpy()
    expected = probabilities(network(torch.zeros(1, 1, dtype=torch.int64))[0, :, 0], 8)
    assert p_value(counts, expected) > 1e-3
    assert p_value(counts, np.roll(expected, 1)) < 1e-6


@torch.no_grad()
def test_bits_are_those_of_the_discretised_mixture(priors: dict[str, Any]) -> None:
    network, codes = Sound(256), torch.tensor([[0, 255, 17, 128]])
    prior = made(network)
    p = [probabilities(network(codes)[0, :, t], 256)[code] for t, code in enumerate(codes[0])]
    torch.testing.assert_close(prior.bits_per_code(codes), torch.tensor([-np.log2(p).mean()]))
    one = torch.cartesian_prod(torch.arange(256), torch.tensor([9]), torch.tensor([200])).view(256, 1, 1, 3)
    total = (-priors["colours"].bits_per_code(one) * 3).exp2().sum()  # of all first colours: a marginal
    assert 0 < total < 1
    flipped = priors["colours"].bits_per_code(one.expand(256, 2, 2, 3).contiguous())
    assert flipped.shape == (256,) and flipped.isfinite().all()


class Given(CausalPrior):
    """The parameters are the condition itself."""

    num_mixtures = M

    def __init__(self) -> None:
        super().__init__(256, None, condition_channels=3 * M)
        self.identity = nn.Parameter(torch.eye(3 * M, dtype=torch.float64))

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        step = Step((Term(CONDITION, weight="identity"),), 3 * M)
        return Program((step,), 256, num_mixtures=M), {"identity": self.identity.detach()[None]}

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return condition


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@pytest.mark.parametrize("parameter", range(3), ids=["weight", "mean", "scale"])
def test_parameters_that_are_nan_are_an_error(method: str, parameter: int) -> None:
    condition = torch.zeros(2, 3 * M, 2, 2, dtype=torch.float64)
    Given().sample(2, (2, 2), condition=condition, method=method)
    condition.view(2, 3, M, 2, 2)[1, parameter, :, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"sample 1 at position \(1, 0\) are NaN"):
        Given().sample(2, (2, 2), condition=condition, method=method)


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_values_beyond_the_ends_are_the_first_and_the_last_code(method: str) -> None:
    condition = torch.zeros(1, 3 * M, 1, 3, dtype=torch.float64)
    condition[0, M : 2 * M] = torch.tensor([-1e300, 1 / 255, 1e300], dtype=torch.float64)
    condition[0, 2 * M :] = -50
    drawn = Given().sample(1, (1, 3), condition=condition, method=method)
    assert drawn.tolist() == [[[0, 128, 255]]]


def test_result_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"result has shape \(2, 9, 5\); want .*num_mixtures.*\(2, 12, 5\)"):
        program_of(Sound(256).double(), 256, (5,), num_mixtures=4)
    with pytest.raises(ValueError, match="num_mixtures is 0"):
        program_of(Sound(256).double(), 256, (5,), num_mixtures=0)
    with pytest.raises(ValueError, match="the last steps have 8 channels; want 9"):
        Program((Step((Term(CONDITION, weight="w"),), 8),), 8, num_mixtures=3)


def test_the_mean_is_drawn_at_temperature_zero_whatever_the_scale(executor: str) -> None:
    network = Sound(256).double().eval()
    with torch.no_grad():
        network.head.bias[2 * M :] = 800
    drawn = program_of(network, 256, (7,), num_mixtures=M).sample(2, (7,), temperature=0, method=executor)
    assert (drawn >= 0).all() and len(drawn.unique()) > 2


def test_one_code_stands_for_no_value() -> None:
    with pytest.raises(ValueError, match="num_embeddings is 1; want 2 or more"):
        program_of(Sound(256), 1, (7,), num_mixtures=M)
