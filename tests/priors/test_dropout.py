from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import Dropout

MakePrior = Callable[..., CausalPrior]
SHAPE = (3, 4)


def same_weights(make_prior: MakePrior, **options: Any) -> tuple[CausalPrior, CausalPrior]:
    """A prior with dropout and one without."""
    return tuple(make_prior("gated", dropout=share, **options) for share in (0.5, 0.0))  # type: ignore[return-value]


@torch.no_grad()
def test_dropout_is_off_in_eval_mode(make_prior: MakePrior, random_codes: Callable[..., Tensor]) -> None:
    dropped, plain = same_weights(make_prior)
    codes = random_codes(plain, 2, SHAPE)
    assert torch.equal(dropped(codes), plain(codes))
    assert torch.equal(plain.train()(codes), plain.eval()(codes))  # a share of zero drops nothing


@torch.no_grad()
def test_training_drops_values_after_each_gate_and_in_the_head(
    make_prior: MakePrior, random_codes: Callable[..., Tensor]
) -> None:
    prior = make_prior("gated", dropout=0.5, num_layers=2).train()
    codes = random_codes(prior, 8, SHAPE)
    kept: list[float] = []
    for module in prior.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(
                lambda module, inputs, output: kept.append((output != 0).double().mean().item())
            )
    torch.manual_seed(0)
    first = prior(codes)
    assert len(kept) == 5  # both stacks of two layers, and the head
    assert all(0.3 < share < 0.7 for share in kept[:4])
    assert not torch.equal(prior(codes), first)
    torch.manual_seed(0)
    assert torch.equal(prior(codes), first)


@pytest.mark.parametrize("method", ["native", "torch", "reference"])
def test_samples_of_a_prior_in_training_mode_are_those_in_eval_mode(
    make_prior: MakePrior, method: str
) -> None:
    dropped, plain = same_weights(make_prior, num_classes=3)
    wanted = plain.sample(6, SHAPE, labels=1, seed=5)
    assert torch.equal(dropped.train().sample(6, SHAPE, labels=1, seed=5, method=method), wanted)
    assert dropped.training


def test_dropout_compiles_into_one_graph(make_prior: MakePrior, random_codes: Callable[..., Tensor]) -> None:
    prior = make_prior("gated", dropout=0.5, num_layers=2).train()
    codes = random_codes(prior, 2, SHAPE)
    compiled = torch.compile(prior, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = prior(codes)
    torch.manual_seed(0)
    assert torch.equal(compiled(codes), expected)
