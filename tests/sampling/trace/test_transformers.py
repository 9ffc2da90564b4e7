"""Transformers over codes: every executor draws what their own loop draws, at every length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.sampling.trace.networks import K
from tests.sampling.trace.transformers import GPT, OwnGELU
from vqfast import program_of
from vqfast.sampling.attention import Attention

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "next": ({"start": "none", "activation": OwnGELU()}, {"predicts": "next"}),
    "a code": ({"start": "code", "heads": 1}, {}),
    "a pad": ({"start": "pad", "activation": nn.GELU("tanh")}, {}),
    "a vector": ({"start": "vector"}, {}),
    "a label": ({"start": "label"}, {"num_classes": 3}),
    "late": ({"start": "late"}, {}),
    "rotary": ({"start": "code", "rotary": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_transformer_draws_what_its_own_loop_draws(case: str, executor: str) -> None:
    torch.manual_seed(0)
    network = GPT(**CASES[case][0]).double().eval()
    nn.init.normal_(network.head.weight)
    prior = program_of(network, K, (7,), **CASES[case][1])
    assert sum(isinstance(step, Attention) for step in prior.lower()[0].steps) == 2
    given: dict[str, Any] = {"labels": torch.arange(4) % 3} if case == "a label" else {}
    for length in (7, 4, 9):
        known = torch.full((4, length), -1)
        known[:, 0] = torch.arange(4) if case == "next" else -1
        expected = prior.sample(4, (length,), known=known, method="reference", **given)
        assert torch.equal(prior.sample(4, (length,), known=known, method=executor, **given), expected)
        assert len(expected.unique(dim=0)) > 1


def test_a_transformer_that_sees_all_codes_is_told() -> None:
    class Masked(GPT):
        """Sees the whole of a sequence, as networks do that fill in masked codes."""

        def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
            x = self.tokens(codes) + self.positions[:, : codes.shape[1]]
            return self.head(self.norm(x + x.mean(1, keepdim=True))).mT

    with pytest.raises(ValueError, match=r"isn't causal: its output at \(0,\) sees the code at"):
        program_of(Masked("none").double().eval(), K, (7,))


def test_a_sequence_through_a_grid_is_told_how_to_be_sampled() -> None:
    network = GPT("vector").double().eval()
    with pytest.raises(ValueError, match=r"a part of a grid in raster order; want shape=\(6,\), a sequence"):
        program_of(lambda codes: network(codes.flatten(1)).unflatten(2, (2, 3)), K, (2, 3))
