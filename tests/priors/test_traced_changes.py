"""A traced prior when its network changes, is copied, pickled, or asked for other shapes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast import program_of
from vqfast.priors import traced as traced_prior

K = 6


class Network(nn.Module):
    """Reads two codes before its own; has plain attributes, blocks in a list, and a cache that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, 4)
        self.layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 2))
        self.head = nn.Linear(4, K)
        self.hidden = [nn.Linear(4, 4)]
        self.scale, self.options, self.activation = 1.0, {"shift": (0.0,)}, F.relu
        self.calls = 0

    def forward(self, codes: Tensor) -> Tensor:
        self.calls += 1
        self.last = codes
        x = F.pad(self.embedding(codes).mT, (2, 0))[..., :-1]
        x = self.activation(self.layer(x)).mT + self.options["shift"][0]
        return self.head(self.hidden[0](x) * self.scale).mT


class Windowed(nn.Module):
    """Attention to the last positions only; up to 8 positions it is to all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(K, 4), nn.Linear(4, K)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.pad(self.embedding(codes), (0, 0, 1, 0))[:, :-1]
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(-8)
        return self.head(F.scaled_dot_product_attention(x, x, x, attn_mask=mask)).mT


def made() -> Network:
    torch.manual_seed(0)
    network = Network().eval()
    for part in (network, network.hidden[0]):
        for parameter in part.double().parameters():
            nn.init.normal_(parameter)
    return network


def change(network: Network, what: str) -> None:
    """Changes a network in one of the ways in which people do."""
    other = nn.Linear(4, K).double()
    if what == "view":
        network.head.weight.detach().view(-1)[::3].add_(2)
    elif what == "assign":
        network.head.load_state_dict(other.state_dict(), assign=True)
    elif what == "module":
        network.head = other
    elif what == "parametrization":
        network.layer.parametrizations.weight.original0.data.mul_(3)
    elif what == "parametrize":
        nn.utils.parametrize.register_parametrization(network.head, "weight", nn.Tanh())
    elif what == "hidden":
        network.hidden[0].weight = nn.Parameter(other.weight[:4].detach())
    elif what == "number":
        network.scale = -2.0
    elif what == "option":
        network.options["shift"] = (1.5,)
    elif what == "function":
        network.activation = F.silu
    elif what == "hook":
        network.head.register_forward_hook(lambda module, args, result: 2 * result)


CHANGES = ["view", "assign", "module", "parametrization", "parametrize", "hidden", "number", "option"]


@pytest.mark.parametrize("what", [*CHANGES, "function", "hook"])
def test_traced_network_follows_every_change(what: str) -> None:
    network = made()
    prior = program_of(network, K, (9,))
    before = prior.sample(5, (9,))
    change(network, what)
    after = prior.sample(5, (9,))
    assert torch.equal(after, prior.sample(5, (9,), method="reference"))
    assert not torch.equal(after, before)


def test_what_a_function_reads_is_followed() -> None:
    network, temperature = made(), 1.0

    def call(codes: Tensor) -> Tensor:
        return network(codes) / temperature

    prior = program_of(call, K, (9,))
    before, temperature = prior.sample(5, (9,)), 0.25
    after = prior.sample(5, (9,))
    assert torch.equal(after, prior.sample(5, (9,), method="reference"))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traced_network_follows_its_dtype(dtype: torch.dtype) -> None:
    network = made()
    network.hidden = nn.ModuleList(network.hidden)
    prior = program_of(network, K, (9,)).to(dtype)
    assert prior.sample(3, (9,)).shape == (3, 9)
    assert next(iter(prior.lower()[1].values())).dtype == dtype


def test_a_network_that_writes_into_itself_is_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, times, lowered = made(), [], traced_prior.lowered
    monkeypatch.setattr(traced_prior, "lowered", lambda *args: times.append(1) or lowered(*args))
    prior = program_of(network, K, (9,))
    for _ in range(3):
        prior.sample(2, (9,), batch_size=1)
        network(torch.zeros(1, 5, dtype=torch.int64))
    assert len(times) == 1


def shifted(network: nn.Module, codes: Tensor) -> Tensor:
    return network(codes) * 2


@pytest.mark.parametrize("kind", ["module", "partial", "closure"])
def test_a_copy_has_a_network_of_its_own(kind: str) -> None:
    network = made()
    network.hidden = nn.ModuleList(network.hidden)
    calls: dict[str, Callable[..., Tensor]] = {"module": network, "partial": partial(shifted, network)}
    prior = program_of(calls.get(kind, lambda codes: network(codes) * 2), K, (9,))
    expected = prior.sample(4, (9,))
    copied = copy.deepcopy(prior)
    for parameter in prior.parameters():
        nn.init.zeros_(parameter.data)
    assert torch.equal(copied.sample(4, (9,)), expected)
    nn.init.zeros_(copied.networks[0].head.weight.data)
    drawn = copied.sample(4, (9,))
    assert torch.equal(drawn, copied.sample(4, (9,), method="reference")) and not torch.equal(drawn, expected)


def test_a_pickled_prior_draws_the_same() -> None:
    prior = program_of(partial(shifted, Windowed().double().eval()), K, (6,))
    file = io.BytesIO()
    torch.save(prior, file)
    file.seek(0)
    loaded: Any = torch.load(file, weights_only=False)
    assert torch.equal(loaded.sample(4, (6,)), prior.sample(4, (6,)))
    assert loaded.networks[0] is loaded.call.args[0]


network_of_this_file = made()


def test_a_function_of_a_global_network_is_not_copied() -> None:
    prior = program_of(lambda codes: network_of_this_file(codes), K, (9,))
    with pytest.raises(TypeError, match="call reads the global variable network_of_this_file"):
        copy.deepcopy(prior)


def test_each_new_shape_is_compared_before_it_is_sampled() -> None:
    prior = program_of(Windowed().double().eval(), K, (6,))
    assert torch.equal(prior.sample(3, (8,)), prior.sample(3, (8,), method="reference"))
    with pytest.raises(ValueError, match=r"shape is \(40,\); want \(6,\), that of program_of, or another"):
        prior.sample(3, (40,))


class Vocoder(nn.Module):
    """Conditioned on a sequence that may have any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.features = nn.Embedding(K, 4), nn.Conv1d(3, 4, 3, padding=1)
        self.head = nn.Conv1d(4, K, 2)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        x = self.embedding(codes).mT + self.features(condition)
        return self.head(F.pad(x.tanh(), (2, 0))[..., :-1])


def test_a_condition_of_another_length_goes_with_another_shape() -> None:
    torch.manual_seed(0)
    prior = program_of(Vocoder().double().eval(), K, (6,), condition=torch.randn(1, 3, 6).double())
    condition = torch.randn(4, 3, 11).double()
    drawn = prior.sample(4, (11,), condition=condition, batch_size=3)
    assert torch.equal(drawn, prior.sample(4, (11,), condition=condition, method="reference"))
    with pytest.raises(ValueError, match=r"condition has shape \(3, 3, 11\); want \(4, ..., ...\)"):
        prior.sample(4, (11,), condition=condition[:3])
    with pytest.raises(ValueError, match=r"shape is \(12,\); want \(6,\), that of program_of"):
        prior.sample(4, (12,), condition=condition)
    prior.float()
    assert prior.sample(4, (6,), condition=condition[..., :6].float()).shape == (4, 6)
