"""Other people's networks as programs: the codes of their own loop, for every executor."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.sampling import networks
from tests.sampling.networks import K
from vqfast.priors import PixelCNN, program_of
from vqfast.priors import traced as traced_prior
from vqfast.sampling.draw import gumbel

CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "in-place-masks": (networks.InPlaceMasked, (4, 5), {"num_classes": 3}),
    "buffers": (networks.Buffered, (4, 5), {}),
    "shifts": (networks.Shifted, (4, 5), {"num_classes": 3}),
    "next": (networks.Dilated, (19,), {"num_classes": 3, "predicts": "next"}),
    "activations": (networks.Activated, (4, 5), {}),
    "conditioned": (networks.Conditioned, (4, 6), {"condition": torch.arange(6).view(1, 2, 3) % 4}),
}


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def make_network() -> Callable[[str], nn.Module]:
    """Float64, weights so large that codes matter."""

    def make(case: str) -> nn.Module:
        torch.manual_seed(0)
        network = CASES[case][0]().double().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 if parameter.ndim == 1 else 2)
        return network

    return make


def given_of(case: str, num: int) -> dict[str, Tensor]:
    """Labels and condition of ``num`` samples, in the order of the network's arguments."""
    options, given = CASES[case][2], {}
    if "num_classes" in options:
        given["labels"] = torch.arange(num) % 3
    if "condition" in options:
        given["condition"] = torch.arange(6 * num).view(num, 2, 3) * 7 % 4
    return given


def own_loop(network: nn.Module, case: str, num: int, shape: tuple[int, ...]) -> Tensor:
    """What people do: the whole network once a position, under the noise of seed 0."""
    given = given_of(case, num).values()
    codes = torch.zeros(num, *shape, dtype=torch.int64)
    flat, behind = codes.view(num, -1), int(case == "next")
    for position in range(behind, flat.shape[1]):
        logits = network(codes, *given).flatten(2)[:, :, position - behind].log_softmax(1)
        noise = gumbel(0, torch.arange(num), torch.tensor([position]), K)[:, 0]
        flat[:, position] = (logits + noise).argmax(1)
    return codes


def known_of(case: str, num: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The first code of a network that predicts what is next."""
    known = torch.full((num, *shape), -1)
    known[..., 0] = 0
    return {"known": known} if case == "next" else {}


@torch.no_grad()
def test_traced_network_draws_what_its_own_loop_draws(
    make_network: Callable[[str], nn.Module], case: str, executor: str
) -> None:
    network, (_, shape, options) = make_network(case), CASES[case]
    prior = program_of(network, K, shape, **options)
    shapes = [shape] if case == "conditioned" else [shape, tuple(n - 2 for n in shape)]
    for shape in shapes:
        expected = own_loop(network, case, 5, shape)
        given = given_of(case, 5) | known_of(case, 5, shape)
        assert torch.equal(prior.sample(5, shape, method=executor, batch_size=3, **given), expected)
        assert torch.equal(prior.sample(5, shape, method="reference", **given), expected)
        assert len(expected.unique(dim=0)) == 5


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20)
@given(blocks=st.lists(st.sampled_from(networks.BLOCKS), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_stack_of_blocks_is_a_program(blocks: list[str], seed: int) -> None:
    prior = program_of(networks.Stack(blocks, seed).double().eval(), K, (3, 4))
    expected = prior.sample(4, (3, 4), method="reference")
    for executor in ("torch", "auto"):
        assert torch.equal(prior.sample(4, (3, 4), method=executor), expected)


def test_traced_network_does_what_every_prior_does(
    make_network: Callable[[str], nn.Module], case: str
) -> None:
    network, (_, shape, options) = make_network(case), CASES[case]
    prior, given = program_of(network, K, shape, **options), given_of(case, 4)
    codes = torch.randint(K, (4, *shape))
    logits, wanted = prior(codes, **given), network(codes, *given.values())
    if case == "next":
        assert (logits[..., 0] == 0).all()
        logits, wanted, rest = logits[..., 1:], wanted[..., :-1], codes[:, 1:]
        bits = F.cross_entropy(wanted, rest, reduction="none").sum(1) / math.log(2) + math.log2(K)
    else:
        bits = F.cross_entropy(wanted, codes, reduction="none").flatten(1).sum(1) / math.log(2)
    assert torch.equal(logits, wanted)
    torch.testing.assert_close(prior.bits_per_code(codes, **given), bits / codes[0].numel())
    known = codes.where(torch.rand(codes.shape) < 0.3, -1)
    known[..., 0] = codes[..., 0]
    draws = {
        "temperature": 0.7,
        "top_k": 4,
        "top_p": 0.9,
        "seed": 3,
        "numbers": torch.tensor([9, 2**40, 0, 1]),
    }
    drawn = prior.sample(4, shape, known=known, **given, **draws)
    assert torch.equal(drawn, prior.sample(4, shape, known=known, method="reference", **given, **draws))
    assert torch.equal(drawn[known >= 0], known[known >= 0])
    if "labels" in given:
        one = prior.sample(4, shape, known=known, labels=1)
        assert torch.equal(one, prior.sample(4, shape, known=known, labels=torch.ones(4, dtype=torch.int64)))


@pytest.mark.parametrize("change", ["step", "data", "load", "assign", "mode"])
def test_traced_network_follows_its_weights(make_network: Callable[[str], nn.Module], change: str) -> None:
    network, other = make_network("buffers"), networks.Buffered().double().eval()
    prior = program_of(network, K, (4, 5))
    before = prior.sample(5, (4, 5))
    if change == "step":
        optimiser = torch.optim.SGD(network.parameters(), 0.5)
        prior.bits_per_code(torch.zeros(5, 4, 5, dtype=torch.int64)).sum().backward()
        optimiser.step()
    elif change == "data":
        network.head.weight.data[0].add_(1)
    elif change == "mode":
        network.train()
        with pytest.raises(ValueError, match=r"batch normalisation in training mode; call \.eval\(\) first"):
            prior.sample(5, (4, 5))
        network.eval()
        network.norms[0].running_mean.add_(1)
    else:
        network.load_state_dict(other.state_dict(), assign=change == "assign")
    after = prior.sample(5, (4, 5))
    assert not torch.equal(after, before)
    assert torch.equal(after, prior.sample(5, (4, 5), method="reference"))


def test_network_is_lowered_once(
    make_network: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[object] = []

    class Counted(traced_prior.Lowering):
        def run(self) -> Any:
            lowered.append(self)
            return super().run()

    monkeypatch.setattr(traced_prior, "Lowering", Counted)
    prior = program_of(make_network("conditioned"), K, (4, 6), **CASES["conditioned"][2])
    for num in (3, 1, 4, 3):
        prior.sample(num, (4, 6), batch_size=2, **given_of("conditioned", num))
    assert len(lowered) == 1


def test_traced_network_has_the_steps_of_a_lowered_one(make_network: Callable[[str], nn.Module]) -> None:
    """The same layers as a PixelCNN's: no step, product or read more."""
    prior = program_of(make_network("in-place-masks"), K, (4, 5), num_classes=3)
    channels = prior.networks[0].embedding.embedding_dim
    like = PixelCNN(
        K, channels, 3, num_classes=3, kernel_size=3, first_kernel_size=3, head_channels=9
    ).double()
    costs = []
    for each in (prior, like):
        program, weights = each.lower()
        read = {name for step in program.steps for name in (*(t.weight for t in step.terms), step.bias)}
        costs.append(
            (len(program.steps), program.phases(), sum(weights[name].numel() for name in read if name))
        )
    assert costs[0] == costs[1]


def test_function_of_a_network_and_float32(make_network: Callable[[str], nn.Module]) -> None:
    network = make_network("shifts").float()

    def call(codes: Tensor) -> Tensor:
        return network(codes, codes.new_ones(len(codes)))

    prior, labelled = program_of(call, K, (4, 5)), program_of(network, K, (4, 5), num_classes=3)
    assert torch.equal(prior.sample(5, (4, 5)), labelled.sample(5, (4, 5), labels=1))
    assert dict(prior.named_parameters()).keys() == dict(labelled.named_parameters()).keys()


# Refusals


class Careless(nn.Module):
    """Sees below, attends, takes steps of two, and is noisy."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(K, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Conv2d(4, K, 1)
        self.dropout = nn.Dropout()

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).permute(0, 3, 1, 2)
        if self.kind == "ahead":
            x = self.conv(x)
        x = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        if self.kind == "several":
            flat = x.flatten(2)
            weights = flat.transpose(1, 2) @ flat  # line of attention
            halved = self.strided(x)  # line of stride
            x = weights.softmax(2).mean(2).view(len(x), 1, 4, 5) + x + F.interpolate(halved, size=(4, 5))
        x = self.dropout(x)
        logits = self.head(x)
        return logits.softmax(1) if self.kind == "probabilities" else logits


def line(text: str) -> str:
    """``file:line`` of this file."""
    lines = Path(__file__).read_text().splitlines()
    return f"{Path(__file__).name}:{next(n for n, each in enumerate(lines, 1) if each.endswith(text))}"


def test_all_that_is_missing_is_listed_with_its_lines() -> None:
    with pytest.raises(ValueError, match="no sampling program can do this") as caught:
        program_of(Careless("several").eval(), K, (4, 5))
    message = str(caught.value)
    assert f"{line('# line of attention')}: bmm" in message
    assert f"{line('# line of stride')}: a convolution of stride [2, 2]" in message


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (
            "ahead",
            r"computed at .*trace\.py:\d+ reads a later .*; its output at \(1, 0\) sees the code at \(1, 1\)",
        ),
        ("probabilities", "softmax; return the logits"),
        ("noisy", "dropout in training mode"),
    ],
)
def test_network_that_no_program_samples_is_refused(kind: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        program_of(Careless(kind).train(kind == "noisy"), K, (4, 5))


def test_logits_that_see_their_own_code_are_refused() -> None:
    network = nn.Sequential(nn.Embedding(K, K))
    with pytest.raises(
        ValueError, match=r"the code that they are for; its output at \(0,\) sees the code at \(0,\)"
    ):
        program_of(lambda codes: network(codes).transpose(1, 2), K, (6,))
    prior = program_of(lambda codes: network(codes).transpose(1, 2), K, (6,), predicts="next")
    with pytest.raises(ValueError, match="known lacks first codes"):
        prior.sample(2, (6,))


def test_shapes_that_the_network_does_not_take_are_refused(make_network: Callable[[str], nn.Module]) -> None:
    prior = program_of(make_network("conditioned"), K, (4, 6), **CASES["conditioned"][2])
    given = given_of("conditioned", 2)
    with pytest.raises(ValueError, match=re.escape("shape is (4, 4); want (4, 6)")):
        prior.sample(2, (4, 4), **given)
    with pytest.raises(ValueError, match=re.escape("condition has shape None; want (2, 2, 3)")):
        prior.sample(2, (4, 6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"call": 3}, TypeError, "call is 3; want a module with weights"),
        ({"call": lambda codes: codes}, TypeError, "or a function that uses one"),
        ({"num_embeddings": True}, TypeError, "num_embeddings is True"),
        ({"call": partial(lambda network, codes: (codes,), nn.Linear(1, 1))}, TypeError, "returns a tuple"),
        ({"call": nn.ReLU()}, TypeError, "want a module with weights"),
        ({"shape": (4, 5.0)}, TypeError, "shape"),
        ({"shape": (4, 5, 6)}, ValueError, r"shape is \(4, 5, 6\); want"),
        ({"num_classes": 0}, ValueError, "num_classes is 0"),
        ({"condition": 3}, TypeError, "condition is a int; want a tensor"),
        ({"predicts": "next"}, ValueError, "predicts is 'next'; want 'own'"),
        ({"num_embeddings": K + 1}, ValueError, rf"num_embeddings is {K + 1}; want {K}, the channels"),
    ],
    ids=str,
)
def test_bad_argument_is_named(
    make_network: Callable[[str], nn.Module], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"call": make_network("buffers"), "num_embeddings": K, "shape": (4, 5)}
    with pytest.raises(error, match=message):
        program_of(**{**arguments, **change})


class ByColumn(nn.Module):
    """Generates column by column: sees the two columns to the left, and two codes above in its own column."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, 4)
        self.columns = nn.Conv2d(4, 4, (3, 2))
        self.above = nn.Conv2d(4, 4, (2, 1))
        self.head = nn.Conv2d(4, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).permute(0, 3, 1, 2)
        left = self.columns(F.pad(x, (2, 0, 1, 1)))[..., :-1]
        above = self.above(F.pad(x, (0, 0, 2, 0)))[:, :, :-1]
        return self.head((left + above).relu())


@torch.no_grad()
def test_network_of_another_order_is_told_and_samples_transposed(executor: str) -> None:
    torch.manual_seed(0)
    network = ByColumn().double().eval()
    with pytest.raises(
        ValueError, match=r"its output at \(0, 2\) sees the code at \(1, 1\); it generates column by"
    ):
        program_of(network, K, (4, 5))
    prior = program_of(lambda codes: network(codes.mT).mT, K, (5, 4))
    expected = prior.sample(5, (5, 4), method="reference")
    assert torch.equal(prior.sample(5, (5, 4), method=executor), expected)
    assert len(expected.unique(dim=0)) == 5


@pytest.mark.parametrize(
    ("case", "num_embeddings", "num_classes", "message"),
    [
        ("in-place-masks", K + 2, 3, rf"if all codes are 0: num_embeddings is {K + 2}, want fewer"),
        ("in-place-masks", K - 1, 3, rf"num_embeddings is {K - 1}; want {K}, the channels of the logits"),
        ("in-place-masks", K, 4, "if all labels are 0: num_classes is 4, want fewer"),
        ("in-place-masks", K, None, r"call fails for codes \(2, 4, 5\) in 0..5: TypeError: .*labels"),
        ("buffers", K, 3, r"call fails for .* labels \(2,\) in 0..2: TypeError"),
    ],
    ids=str,
)
def test_network_that_does_not_take_the_inputs_is_refused_at_the_door(
    make_network: Callable[[str], nn.Module],
    case: str,
    num_embeddings: int,
    num_classes: int | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        program_of(make_network(case), num_embeddings, (4, 5), num_classes=num_classes)
