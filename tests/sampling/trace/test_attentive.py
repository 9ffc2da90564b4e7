"""Attention in networks of other people: every executor draws what their own loop draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.sampling.trace import attentive
from tests.sampling.trace.networks import K
from vqfast.priors import program_of
from vqfast.sampling.attention import Attention


@torch.no_grad()
def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = kind().double().eval()
    for parameter in network.parameters():
        parameter.mul_(1.5 if parameter.ndim > 1 else 1)
    return network


@pytest.mark.parametrize("kind", attentive.KINDS, ids=lambda kind: kind.__name__)
def test_traced_attention_draws_what_its_own_loop_draws(executor: str, kind: Callable[[], nn.Module]) -> None:
    prior = program_of(made(kind), K, (3, 4))
    (attention,) = (step for step in prior.lower()[0].steps if isinstance(step, Attention))
    assert attention.own == (kind not in (attentive.StartMasked, attentive.ZeroFilled))
    for shape in ((3, 4), (2, 5)):
        expected = prior.sample(5, shape, method="reference")
        assert torch.equal(prior.sample(5, shape, method=executor), expected)
        assert len(expected.unique(dim=0)) > 3


def test_traced_transformer_draws_what_its_own_loop_draws(executor: str) -> None:
    prior = program_of(made(attentive.Swept), K, (9,), predicts="next")
    known = torch.full((4, 9), -1)
    known[:, 0] = torch.arange(4)
    expected = prior.sample(4, (9,), known=known, method="reference")
    assert torch.equal(prior.sample(4, (9,), known=known, method=executor), expected)


def test_attention_to_later_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isn't causal: its output at .* sees(.*\n)+.*attentive.py:\d+: "):
        program_of(made(attentive.SeesAll), K, (3, 4))


def test_attention_to_some_earlier_positions_is_refused_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"attentive.py:\d+: attention whose weights are no softmax"):
        program_of(made(attentive.Windowed), K, (3, 4))
