"""Priors of a finer level of codes, given the coarser ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.priors import ConditionedPrior, PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet
from vqfast.priors.base import CausalPrior

PRIORS: dict[str, Callable[..., CausalPrior]] = {
    "gated": lambda **more: PixelCNN(
        7, channels=4, num_layers=2, first_kernel_size=3, head_channels=4, condition_channels=6, **more
    ),
    "residual": lambda **more: ResidualPixelCNN(7, channels=4, condition_channels=6, **more),
    "wavenet": lambda **more: WaveNet(7, channels=4, num_layers=3, condition_channels=6, **more),
    "snail": lambda **more: PixelSNAIL(
        7, 4, 1, 1, num_heads=2, first_kernel_size=3, head_channels=4, condition_channels=6, **more
    ),
}
SHAPE = {"gated": (4, 8), "residual": (4, 8), "wavenet": (8,), "snail": (4, 8)}


def make(kind: str, **more: Any) -> ConditionedPrior:
    """A prior of a third level, whose weights are far from those that it starts with."""
    torch.manual_seed(1)
    prior = ConditionedPrior(PRIORS[kind](**more), [5, 9], [4, 2], num_residual_blocks=1).double().eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


def grids(kind: str, num: int) -> tuple[list[Tensor], Tensor]:
    """Random codes of the two coarser levels and of the prior's."""
    generator = torch.Generator().manual_seed(2)
    shape = SHAPE[kind]

    def draw(k: int, stride: int) -> Tensor:
        return torch.randint(k, (num, *(size // stride for size in shape)), generator=generator)

    return [draw(5, 4), draw(9, 2)], draw(7, 1)


@pytest.mark.parametrize("kind", PRIORS)
def test_logits_depend_on_earlier_codes_and_on_all_coarser_ones(kind: str) -> None:
    prior = make(kind)
    coarser, codes = grids(kind, 1)
    logits = prior(codes, coarser=coarser).flatten(2)
    for position in range(codes[0].numel()):
        other = codes.clone()
        other.view(-1)[position] = (other.view(-1)[position] + 1) % 7
        changed = (prior(other, coarser=coarser).flatten(2) != logits).any(1)[0]
        assert not changed[: position + 1].any()
    for level, k in enumerate((5, 9)):
        others = [indices.clone() for indices in coarser]
        others[level].view(-1)[-1] = (others[level].view(-1)[-1] + 1) % k
        assert (prior(codes, coarser=others).flatten(2) != logits).any(1)[0, -1]


@pytest.mark.parametrize("kind", PRIORS)
def test_executors_draw_what_the_model_draws(kind: str) -> None:
    prior = make(kind, num_classes=3)
    coarser, _ = grids(kind, 5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    options: dict[str, Any] = {"coarser": coarser, "labels": labels, "seed": 3}
    expected = prior.sample(5, SHAPE[kind], method="reference", **options)
    assert torch.equal(prior.sample(5, SHAPE[kind], batch_size=2, **options), expected)
    for method in registry.TABLE["sampler"]:
        if registry.refusal("sampler", method, next(prior.parameters())) is None:
            assert torch.equal(prior.sample(5, SHAPE[kind], method=method, **options), expected)
    condition = prior.network(coarser).detach()
    own = prior.prior.sample(5, SHAPE[kind], labels=labels, condition=condition, seed=3)
    assert torch.equal(own, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", PRIORS)
def test_bits_are_the_sum_over_positions(kind: str) -> None:
    prior = make(kind)
    coarser, codes = grids(kind, 2)
    expected = torch.zeros(2, dtype=torch.float64)
    flat = codes.flatten(1)
    for position in range(flat.shape[1]):  # each from a grid that has the earlier codes alone
        earlier = flat.where(torch.arange(flat.shape[1]) < position, 0).view_as(codes)
        p = prior(earlier, coarser=coarser).flatten(2)[:, :, position].softmax(1)
        expected -= p.gather(1, flat[:, position, None])[:, 0].log() / math.log(2)
    bits = prior.bits_per_code(codes, coarser=coarser)
    torch.testing.assert_close(bits * flat.shape[1], expected)


def test_the_network_learns_with_the_prior() -> None:
    """Codes that repeat the coarser ones: the bits fall below those without them."""
    torch.manual_seed(0)
    prior = ConditionedPrior(PRIORS["gated"](), [7], [2], num_residual_blocks=0)
    optimizer = torch.optim.Adam(prior.parameters(), 2e-2)
    for _ in range(120):
        top = torch.randint(7, (16, 2, 2))
        bottom = top.repeat_interleave(2, 1).repeat_interleave(2, 2)
        bits = prior.bits_per_code(bottom, coarser=[top]).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    assert bits < 0.4  # without the coarser codes 0.7: a quarter of the codes is new


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "prior is None", lambda: ConditionedPrior(None, [5], [2])),
        (ValueError, "condition_channels 0", lambda: ConditionedPrior(PixelCNN(5, 4, 1), [5], [2])),
        (TypeError, "codebook_sizes is 5", lambda: ConditionedPrior(PRIORS["gated"](), 5, [2])),
        (ValueError, r"strides is \[\]", lambda: ConditionedPrior(PRIORS["gated"](), [], [])),
        (ValueError, r"strides is \[2\]; want one", lambda: ConditionedPrior(PRIORS["gated"](), [5, 5], [2])),
        (ValueError, "a multiple of the next", lambda: ConditionedPrior(PRIORS["gated"](), [5, 5], [3, 2])),
        (ValueError, "a number of strides is 0", lambda: ConditionedPrior(PRIORS["gated"](), [5], [0])),
    ],
)
def test_wrong_arguments(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_wrong_coarser_codes() -> None:
    prior = make("gated")
    coarser, codes = grids("gated", 2)
    for wrong, error, message in (
        (coarser[0], TypeError, "coarser is a Tensor"),
        (coarser[:1], ValueError, "coarser has 1 levels; want 2"),
        ([coarser[0] + 5, coarser[1]], ValueError, r"coarser\[0\] has values"),
        ([coarser[0].double(), coarser[1]], TypeError, r"coarser\[0\] has dtype"),
        (coarser[::-1], ValueError, r"coarser\[0\] has "),
        ([coarser[0], coarser[1][:, :1]], ValueError, r"coarser\[1\] has shape .*cover \(4, 8\)"),
        ([grid[:1] for grid in coarser], ValueError, r"coarser\[0\] has 1 grids; want 2"),
    ):
        with pytest.raises(error, match=message):
            prior(codes, coarser=wrong)
        with pytest.raises(error, match=message):
            prior.sample(2, (4, 8), coarser=wrong)


def test_a_prior_of_several_codes_a_position_is_conditioned_too() -> None:
    torch.manual_seed(0)
    inner = PixelCNN(5, channels=4, num_layers=2, condition_channels=3, num_quantizers=2)
    prior = ConditionedPrior(inner, [7], [2])
    coarser = [torch.randint(7, (2, 2, 2))]
    codes = prior.sample(2, (4, 4), coarser=coarser)
    nats = torch.nn.functional.cross_entropy(prior(codes, coarser=coarser), codes, reduction="none")
    bits = nats.flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(prior.bits_per_code(codes, coarser=coarser), bits)


def test_a_wavenet_takes_its_map_at_its_own_stride() -> None:
    torch.manual_seed(0)
    wavenet = WaveNet(7, channels=4, num_layers=3, condition_channels=6, condition_stride=2)
    prior = ConditionedPrior(wavenet, [5], [4]).double().eval()
    coarser = [torch.randint(5, (3, 2))]
    drawn = prior.sample(3, (8,), coarser=coarser)
    assert torch.equal(drawn, prior.sample(3, (8,), coarser=coarser, method="reference"))
    assert prior(drawn, coarser=coarser).shape == (3, 7, 8)
    with pytest.raises(
        ValueError, match=r"strides is \[3\]; want multiples of 2, the prior's condition_stride"
    ):
        ConditionedPrior(wavenet, [5], [3])


def test_each_sample_has_its_coarser_grids() -> None:
    prior, (coarser, codes) = make("gated"), grids("gated", 3)
    with pytest.raises(ValueError, match=re.escape("coarser[0] has 3 grids; want 2, one for each sample")):
        prior.sample(2, SHAPE["gated"], coarser=coarser)
    with pytest.raises(ValueError, match=re.escape("coarser[0] has 3 grids; want 2, one for each sample")):
        prior(codes[:2], coarser=coarser)
