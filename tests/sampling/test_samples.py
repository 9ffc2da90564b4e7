"""What a sample depends on, which codes are kept, and logits that allow no draw."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.priors.small import BOTH, SHAPES, SMALL, Conditioning, MakePrior, some_known
from vqfast.ops import registry


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_sample_depends_on_its_number_alone(
    make_prior: MakePrior, conditioning: Conditioning, kind: str, method: str
) -> None:
    prior = make_prior(kind, **BOTH)
    shape = SHAPES[kind]
    extra = conditioning(prior, 6, shape)
    numbers = torch.tensor([0, 1, 5, 2**32, 2**32 + 1, 2**62])
    whole = prior.sample(6, shape, numbers=numbers, method=method, **extra)
    assert len(whole.unique(dim=0)) == 6
    order = torch.tensor([4, 0, 5, 2, 2])
    options = {name: value[order] for name, value in {"numbers": numbers, **extra}.items()}
    assert torch.equal(prior.sample(5, shape, method=method, **options), whole[order])
    for i in range(6):
        alone = {name: value[i : i + 1] for name, value in {"numbers": numbers, **extra}.items()}
        assert torch.equal(prior.sample(1, shape, method=method, **alone), whole[i : i + 1])


def test_strides_of_the_arguments_do_not_matter(
    make_prior: MakePrior, conditioning: Conditioning, executor: str, kind: str
) -> None:
    prior = make_prior(kind, **BOTH)
    shape = SHAPES[kind]
    tensors = {"numbers": torch.tensor([3, 1, 2]), "known": some_known(prior, 3, shape, 0.3, seed=0)}
    tensors |= conditioning(prior, 3, shape)
    strided = {name: torch.stack([t, t], dim=-1)[..., 0] for name, t in tensors.items()}
    assert not any(t.is_contiguous() for t in strided.values())
    expected = prior.sample(3, shape, method=executor, **tensors)
    assert torch.equal(prior.sample(3, shape, method=executor, **strided), expected)


@pytest.mark.parametrize("other", [1, 2**32, 2**63])
def test_every_bit_of_the_seed_changes_the_samples(make_prior: MakePrior, kind: str, other: int) -> None:
    prior = make_prior(kind)
    assert (
        prior.sample(50, SHAPES[kind]) != prior.sample(50, SHAPES[kind], seed=other)
    ).double().mean() > 0.3


def test_integer_label_stands_for_all(make_prior: MakePrior, kind: str) -> None:
    prior = make_prior(kind, num_classes=3)
    by_label = [prior.sample(4, SHAPES[kind], labels=label) for label in range(3)]
    for label, drawn in enumerate(by_label):
        assert torch.equal(drawn, prior.sample(4, SHAPES[kind], labels=torch.full((4,), label)))
    assert not torch.equal(by_label[0], by_label[1])


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_known_codes_stay_and_change_nothing_before_them(
    make_prior: MakePrior, kind: str, method: str
) -> None:
    prior = make_prior(kind)
    free = prior.sample(5, SHAPES[kind], method=method).flatten(1)
    places = torch.tensor([0, 1, 5, 11, 8])  # where each sample gets a code that it doesn't draw
    known = torch.full_like(free, -1)
    known[range(5), places] = (free[range(5), places] + 1) % prior.num_embeddings
    drawn = prior.sample(5, SHAPES[kind], known=known.view(5, *SHAPES[kind]), method=method).flatten(1)
    assert torch.equal(drawn[range(5), places], known[range(5), places])
    before = torch.arange(12) < places[:, None]
    assert torch.equal(drawn[before], free[before])
    after = torch.arange(12) > places[:, None]
    assert (drawn[after] != free[after]).any()


def test_samples_given_back_as_known_come_out_again(make_prior: MakePrior, executor: str, kind: str) -> None:
    prior = make_prior(kind)
    drawn = prior.sample(5, SHAPES[kind], seed=1)
    again = prior.sample(5, SHAPES[kind], known=drawn, seed=2, method=executor)
    assert torch.equal(again, drawn) and again.data_ptr() != drawn.data_ptr()
    half = torch.arange(drawn[0].numel()).view(SHAPES[kind]) < 6
    drawn = prior.sample(5, SHAPES[kind], known=drawn.where(half, -1), seed=1, method=executor)
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}], ids=str
)
@torch.no_grad()
def test_greedy_sampling_takes_the_most_likely_code(
    make_prior: MakePrior, kind: str, method: str, options: dict[str, Any]
) -> None:
    prior = make_prior(kind, num_classes=5)
    labels = torch.arange(5)
    codes = torch.zeros(5, *SHAPES[kind], dtype=torch.int64)
    for place in range(12):
        codes.view(5, -1)[:, place] = prior(codes, labels).flatten(2)[:, :, place].argmax(1)
    assert torch.equal(prior.sample(5, SHAPES[kind], labels=labels, method=method, **options), codes)
    assert codes.unique().numel() > 1


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_progress_adds_up_to_every_code(make_prior: MakePrior, kind: str, method: str) -> None:
    calls: list[int] = []
    known = torch.zeros(5, *SHAPES[kind], dtype=torch.int64)
    make_prior(kind).sample(5, SHAPES[kind], known=known, batch_size=2, progress=calls.append, method=method)
    assert sum(calls) == 5 * 12
    assert len(calls) > 1 and min(calls) > 0


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0}], ids=str)
@pytest.mark.parametrize(
    "bias",
    [[-torch.inf] * 5, [torch.inf] * 5, [0, torch.inf, 0, 0, 0], [0, 0, 0, torch.nan, -torch.inf]],
    ids=str,
)
def test_logits_without_a_finite_maximum_are_an_error(
    make_prior: MakePrior, kind: str, method: str, bias: list[float], options: dict[str, Any]
) -> None:
    prior = make_prior(kind)
    list(prior.parameters())[-1].data[:] = torch.tensor(bias)
    known = torch.zeros(3, *SMALL[kind], dtype=torch.int64)
    known[2].flatten()[2:] = -1
    place = re.escape("(1, 0)" if prior.ndim == 2 else "(2,)")
    with pytest.raises(ValueError, match=f"the logits of sample 2 at position {place} are NaN or have no"):
        prior.sample(3, SMALL[kind], known=known, method=method, batch_size=3, **options)


def test_known_codes_need_no_logits(make_prior: MakePrior, executor: str) -> None:
    prior = make_prior("residual")
    list(prior.parameters())[-1].data[:] = torch.nan
    known = torch.ones(2, 1, 2, dtype=torch.int64)
    assert torch.equal(prior.sample(2, (1, 2), known=known, method=executor), known)


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_logits_that_are_nan_for_one_sample_name_it(make_prior: MakePrior, kind: str, method: str) -> None:
    no_attention = {"num_heads": 0} if kind == "snail" else {}  # in which a later NaN times zero is NaN
    prior = make_prior(kind, condition_channels=1, **no_attention)
    condition = torch.zeros(4, 1, *SHAPES[kind])
    condition[3].flatten()[7:] = torch.nan
    condition[1].flatten()[9:] = -torch.nan
    nan = prior(torch.zeros(4, *SHAPES[kind], dtype=torch.int64), condition=condition).isnan().any(1)
    first, *place = nan.nonzero()[0].tolist()
    assert first == 1 and place != [0] * prior.ndim
    with pytest.raises(ValueError, match=re.escape(f"sample 1 at position {tuple(place)} are NaN")):
        prior.sample(4, SHAPES[kind], condition=condition, method=method, batch_size=1)


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.5}, {"temperature": 0}], ids=str)
def test_logits_that_are_minus_infinity_hide_codes(
    make_prior: MakePrior, kind: str, method: str, options: dict[str, Any]
) -> None:
    """The other codes are drawn as if the hidden codes' logits were only very low."""
    prior = make_prior(kind)
    bias = list(prior.parameters())[-1].data
    bias[[0, 3]] = -1e9
    expected = prior.sample(9, SMALL[kind], method="reference", **options)
    bias[[0, 3]] = -torch.inf
    assert torch.equal(prior.sample(9, SMALL[kind], method=method, **options), expected)
    assert set(expected.unique().tolist()) <= {1, 2, 4}


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@pytest.mark.parametrize("training", [True, False])
def test_nan_weights_are_an_error_and_the_mode_is_restored(
    make_prior: MakePrior, kind: str, method: str, training: bool
) -> None:
    prior = make_prior(kind).train(training)
    prior.sample(3, SHAPES[kind], method=method, batch_size=2)
    assert prior.training == training
    list(prior.parameters())[-1].data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        prior.sample(3, SHAPES[kind], method=method, batch_size=2)
    assert prior.training == training


def test_samples_are_ordinary_tensors(make_prior: MakePrior, executor: str, kind: str) -> None:
    prior = make_prior(kind)
    drawn = prior.sample(2, SHAPES[kind], method=executor)
    prior.bits_per_code(drawn).sum().backward()  # as training on samples does
    drawn[:, 0] = -1  # as completing them does
    assert (drawn[:, 0] == -1).all()


def test_methods_are_executors_and_auto_is_one_of_them(make_prior: MakePrior, kind: str) -> None:
    prior = make_prior(kind)
    expected = prior.sample(3, SHAPES[kind], method="reference")
    for method in ("auto", "native", "torch"):
        assert torch.equal(prior.sample(3, SHAPES[kind], method=method), expected)
