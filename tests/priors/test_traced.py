"""program_of: a traced network is a prior, follows its weights, and is refused for what it doesn't take."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sampling.trace import networks
from tests.sampling.trace.cases import CASES, given_of, make_network
from tests.sampling.trace.networks import K
from vqfast.priors import program_of
from vqfast.priors import traced as traced_prior


@pytest.mark.parametrize("case", CASES)
def test_traced_network_does_what_every_prior_does(case: str) -> None:
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
def test_traced_network_follows_its_weights(change: str) -> None:
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


def test_network_is_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(*args: Any) -> Any:
        made.append(lowered(*args))
        return made[-1]

    lowered = traced_prior.lowered
    monkeypatch.setattr(traced_prior, "lowered", counted)
    prior = program_of(make_network("conditioned"), K, (4, 6), **CASES["conditioned"][2])
    for num in (3, 1, 4, 3):
        prior.sample(num, (4, 6), batch_size=2, **given_of("conditioned", num))
    assert len(made) == 1


def test_function_of_a_network_and_float32() -> None:
    network = make_network("shifts").float()

    def call(codes: Tensor) -> Tensor:
        return network(codes, codes.new_ones(len(codes)))

    prior, labelled = program_of(call, K, (4, 5)), program_of(network, K, (4, 5), num_classes=3)
    assert torch.equal(prior.sample(5, (4, 5)), labelled.sample(5, (4, 5), labels=1))
    assert dict(prior.named_parameters()).keys() == dict(labelled.named_parameters()).keys()


def test_shapes_that_the_network_does_not_take_are_refused() -> None:
    prior = program_of(make_network("conditioned"), K, (4, 6), **CASES["conditioned"][2])
    given = given_of("conditioned", 2)
    with pytest.raises(ValueError, match=re.escape("shape is (4, 4); want (4, 6), that of program_of")):
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
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),
)
def test_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"call": make_network("buffers"), "num_embeddings": K, "shape": (4, 5)}
    with pytest.raises(error, match=message):
        program_of(**{**arguments, **change})


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
    case: str,
    num_embeddings: int,
    num_classes: int | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        program_of(make_network(case), num_embeddings, (4, 5), num_classes=num_classes)
