from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqfast.ops import registry
from vqfast.priors.base import CausalPrior
from vqfast.sampling.draw import Draw

MakePrior = Callable[..., CausalPrior]
Conditioning = Callable[..., dict[str, Tensor]]
CONDITIONS = [{}, {"num_classes": 3}, {"condition_channels": 2}, {"num_classes": 3, "condition_channels": 2}]
BOTH = CONDITIONS[-1]
SHAPES = {"gated": (3, 4), "residual": (3, 4), "wavenet": (12,)}
SMALL = {"gated": (2, 2), "residual": (2, 2), "wavenet": (4,)}


def some_known(prior: CausalPrior, num: int, shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """Random codes, each kept with probability ``density``, the others -1."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(prior.num_embeddings, (num, *shape), generator=generator)
    return codes.where(torch.rand(codes.shape, generator=generator) < density, -1)


# Every executor against the definition


@pytest.mark.parametrize("conditions", CONDITIONS, ids="-".join)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    grid=st.sampled_from([(1, 1), (1, 5), (5, 1), (3, 4), (4, 3), (2, 6)]),
    length=st.integers(1, 40),
    num=st.integers(1, 7),
    batch_size=st.integers(1, 7),
    temperature=st.sampled_from([0, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([None, 1, 2, 4, 99]),
    top_p=st.sampled_from([None, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    density=st.sampled_from([None, 0.2, 0.8, 1]),
)
def test_executor_draws_what_the_naive_sampler_draws(
    make_prior: MakePrior,
    conditioning: Conditioning,
    executor: str,
    kind: str,
    conditions: dict[str, int],
    grid: tuple[int, int],
    length: int,
    num: int,
    batch_size: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    density: float | None,
) -> None:
    prior = make_prior(kind, **conditions)
    shape = grid if prior.ndim == 2 else (length,)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if density is not None:
        options["known"] = some_known(prior, num, shape, density, seed=num)
    options |= conditioning(prior, num, shape)
    expected = prior.sample(num, shape, method="reference", **options)
    drawn = prior.sample(num, shape, method=executor, batch_size=batch_size, **options)
    assert torch.equal(drawn, expected)
    assert drawn.dtype == torch.int64 and drawn.shape == (num, *shape)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *product(
            SHAPES,
            [
                {"num_embeddings": 1},
                {"num_embeddings": 6},
                {"num_embeddings": 8},
                {"channels": 1},
                {"num_layers": 1},
            ],
        ),
        ("gated", {"kernel_size": 5, "first_kernel_size": 3}),
        ("gated", {"first_kernel_size": 9}),
        ("residual", {"first_kernel_size": 9}),
        ("wavenet", {"dilation_cycle": 1}),
        ("wavenet", {"num_layers": 6, "dilation_cycle": 6}),
    ],
)
def test_executor_draws_what_the_naive_sampler_draws_from_odd_models(
    make_prior: MakePrior, executor: str, kind: str, overrides: dict[str, int]
) -> None:
    prior = make_prior(kind, **overrides)
    for shape in ((1, 1), (1, 6), (6, 1), (3, 2)) if prior.ndim == 2 else ((1,), (2,), (37,)):
        expected = prior.sample(4, shape, method="reference")
        assert torch.equal(prior.sample(4, shape, method=executor), expected)


@pytest.mark.parametrize(("kind", "shape"), [("gated", (2, 9)), ("wavenet", (9,))])
def test_executor_draws_what_the_naive_sampler_draws_where_noise_is_large(
    make_prior: MakePrior, executor: str, kind: str, shape: tuple[int, ...]
) -> None:
    prior = make_prior(kind, num_embeddings=1021)
    expected = prior.sample(512, shape, method="reference", batch_size=512)  # 4 million draws of noise a row
    assert torch.equal(prior.sample(512, shape, method=executor, batch_size=512), expected)


@torch.no_grad()
def test_float32_draws_differ_only_where_two_codes_agree_to_rounding(
    make_prior: MakePrior, executor: str, kind: str
) -> None:
    """Each draw against float64's, given the codes before it: 1 in 100,000 may differ."""
    prior = make_prior(kind, num_embeddings=16)
    shape, num = (4, 5) if prior.ndim == 2 else (20,), 6000
    drawn = prior.float().sample(num, shape, method=executor, batch_size=2000)
    logits = prior.double()(drawn).flatten(2).transpose(1, 2)
    scores = logits + Draw(0, torch.arange(num), 1.0, None, None).noise(0, 20, 16)
    best = scores.topk(2, dim=2).values
    differs = scores.argmax(2) != drawn.flatten(1)
    assert differs.sum() <= drawn.numel() / 100_000
    assert (best[..., 0] - best[..., 1])[differs].lt(1e-4).all()
    assert len(drawn.unique(dim=0)) > 5000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", registry.TABLE["sampler"])
def test_low_precision_prior_samples_codes_of_the_right_frequency(
    make_prior: MakePrior, conditioning: Conditioning, kind: str, method: str, dtype: torch.dtype
) -> None:
    prior = make_prior(kind, **BOTH)
    options = {"method": method} | conditioning(prior, 1000, SHAPES[kind])
    expected = prior.sample(1000, SHAPES[kind], **options)
    drawn = prior.to(dtype).sample(1000, SHAPES[kind], **options)
    assert (drawn != expected).double().mean() < 0.1  # other draws differ in 3 of 4 codes


# The distribution


def distribution(
    prior: CausalPrior, grids: Tensor, temperature: float, extra: dict[str, Tensor]
) -> np.ndarray:
    """Probability of each grid: the product of softmaxes of the model's logits."""
    extra = {name: value.expand(len(grids), *value.shape[1:]) for name, value in extra.items()}
    log_p = (prior(grids, **extra) / temperature).log_softmax(1).gather(1, grids.unsqueeze(1))
    return log_p.flatten(1).sum(1).exp().numpy()


def fit(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of the chi-square test, all bins that expect fewer than ten merged into one."""
    expected = probabilities * counts.sum()
    small = expected < 10
    if small.any():
        counts, expected = (np.append(a[~small], a[small].sum()) for a in (counts, expected))
    return scipy.stats.chisquare(counts, expected).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@torch.no_grad()
def test_samples_have_the_models_distribution_and_no_other(
    make_prior: MakePrior, conditioning: Conditioning, kind: str, method: str
) -> None:
    num, temperature = 100_000, 0.8
    prior = make_prior(kind, num_embeddings=3, num_layers=2, **BOTH)
    shape = (2, 2) if prior.ndim == 2 else (4,)
    extra = conditioning(prior, 1, shape)
    repeated = {name: value.expand(num, *value.shape[1:]) for name, value in extra.items()}
    options = {"temperature": temperature, "batch_size": 20_000, "method": method, "seed": 3}
    drawn = prior.sample(num, shape, **options, **repeated)
    counts = torch.bincount(drawn.flatten(1) @ torch.tensor([27, 9, 3, 1]), minlength=81).numpy()
    grids = torch.tensor(list(product(range(3), repeat=4))).view(81, *shape)
    assert fit(counts, distribution(prior, grids, temperature, extra)) > 1e-3
    assert fit(counts, distribution(prior, grids, 0.9, extra)) < 1e-6


# Which samples


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["numbers", "labels", "known"])
def test_integer_arguments_may_have_any_integer_dtype(
    make_prior: MakePrior, name: str, dtype: torch.dtype
) -> None:
    prior = make_prior("gated", num_classes=3)
    arguments = {
        "numbers": torch.tensor([0, 1, 77, 5]),
        "labels": torch.tensor([2, 0, 1, 1]),
        "known": some_known(prior, 4, (3, 4), 1 if (name, dtype) == ("known", torch.uint8) else 0.3, seed=0),
    }
    expected = prior.sample(4, (3, 4), **arguments)
    drawn = prior.sample(4, (3, 4), **arguments | {name: arguments[name].to(dtype)})
    assert torch.equal(drawn, expected)


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


# Known codes


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


# How a code is drawn


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


def support(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> set[int]:
    """Codes that top_k, then top_p leave, by sorting."""
    order = sorted(range(len(logits)), key=lambda code: (-logits[code], code))
    if top_k is not None:
        order = [code for code in order if logits[code] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    if top_p is None:
        return set(order)
    enough = np.searchsorted(np.cumsum(weights) / weights.sum(), top_p * (1 - 1e-12))
    return set(order[: enough + 1])


LOGITS = {
    "distinct": [0.3, -1.0, 2.0, 1.1, 0.0, 0.7, -0.2],
    "ties": [1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.5],
    "flat": [0.0] * 7,
}


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("top_k", [None, 1, 2, 4, 7, 99])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.4, 0.8, 1.0])
def test_draws_are_softmax_draws_of_what_top_k_and_top_p_leave(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    num = 4000
    draw = Draw(0, torch.arange(num), temperature, top_k, top_p)
    codes = draw(torch.tensor(logits).expand(num, 7), draw.noise(0, 1, 7)[:, 0])
    counts = torch.bincount(codes, minlength=7).numpy()
    kept = support(np.array(logits), temperature, top_k, top_p)
    assert set(codes.tolist()) == kept
    weights = np.array([np.exp(logits[code] / temperature) if code in kept else 0 for code in range(7)])
    if len(kept) > 1:
        assert fit(counts[weights > 0], weights[weights > 0] / weights.sum()) > 1e-4  # of 90 cases


# What sample does besides


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
def test_logits_that_say_nothing_are_an_error(
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
    prior = make_prior(kind, condition_channels=1)
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
    """Those of the other codes draw as the same prior does whose hidden ones are merely out of reach."""
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
    prior.bits_per_code(drawn).sum().backward()  # what training on samples does
    drawn[:, 0] = -1  # what completing them does
    assert (drawn[:, 0] == -1).all()


def test_methods_are_executors_and_auto_is_one_of_them(make_prior: MakePrior, kind: str) -> None:
    prior = make_prior(kind)
    expected = prior.sample(3, SHAPES[kind], method="reference")
    for method in ("auto", "native", "torch"):
        assert torch.equal(prior.sample(3, SHAPES[kind], method=method), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("num", "batch_size"), (0, -1)),
        *product(("shape",), ((0, 4), (3, -1), (3,), (1, 3, 4))),
        *product(("temperature",), (-1, float("nan"), float("inf"), 1e301)),
        *product(("top_k",), (0, -1)),
        *product(("top_p",), (0, -0.1, 1.1, float("nan"))),
        *product(("seed",), (-1, 2**64)),
        ("method", "fast"),
        *product(("numbers",), ([0], [[0, 1]], [-1, 0], [0.0, 1.0])),
        *product(("labels",), ([0], [[0, 1]], [0, 3], [-1, 0], [0.0, 1.0], None)),
        *product(
            ("known",), (0, [[0] * 4] * 3, [[[-2] * 4] * 3] * 2, [[[5] * 4] * 3] * 2, [[[0.5] * 4] * 3] * 2)
        ),
        *product(("condition",), (0.0, [[[[0.0] * 4] * 3]] * 2, None)),
    ],
    ids=str,
)
def test_bad_argument_is_named(
    make_prior: MakePrior, conditioning: Conditioning, name: str, value: Any
) -> None:
    prior = make_prior("gated", **BOTH)
    if name in ("numbers", "labels", "known", "condition") and value is not None:
        value = torch.tensor(value)
    options = {"num": 2, "shape": (3, 4), **conditioning(prior, 2, (3, 4)), name: value}
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        prior.sample(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("num", "batch_size", "top_k", "seed", "labels"), (True, 1.5, "2", torch.tensor(2))),
        *product(("shape",), (4, (3.0, 4), (True, 4))),
        *product(("temperature", "top_p"), (True, "1", 1j, torch.tensor(0.5))),
        *product(("progress",), ("bar", 1)),
        *product(("numbers", "labels"), ([0.0, 1.0], [True, False])),
        ("known", [[[True] * 4] * 3] * 2),
    ],
    ids=str,
)
def test_argument_of_another_kind_is_a_type_error(make_prior: MakePrior, name: str, value: Any) -> None:
    if isinstance(value, list):
        value = torch.tensor(value)
    elif name == "labels" and isinstance(value, Tensor):
        value = value.bool()
    options = {"num": 2, "shape": (3, 4), "labels": 0, name: value}
    for sample in ("sample", "sample_batches"):
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            getattr(make_prior("gated", num_classes=3), sample)(**options)


@pytest.mark.parametrize("label", [True, 1.5, torch.tensor([0.0, 1.0]), torch.tensor([True, False])], ids=str)
@pytest.mark.parametrize("method", ["forward", "bits_per_code"])
def test_label_that_is_no_integer_is_a_type_error(make_prior: MakePrior, method: str, label: Any) -> None:
    prior, codes = make_prior("gated", num_classes=3), torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="labels"):
        getattr(prior, method)(codes, label)
    assert torch.equal(getattr(prior, method)(codes, 2), getattr(prior, method)(codes, torch.tensor([2, 2])))


@pytest.mark.parametrize("name", ["numbers", "labels", "known", "condition"])
def test_list_for_a_tensor_is_a_type_error(
    make_prior: MakePrior, conditioning: Conditioning, name: str
) -> None:
    prior = make_prior("gated", **BOTH)
    options = conditioning(prior, 2, (3, 4))
    with pytest.raises(TypeError, match=name):
        prior.sample(2, (3, 4), **options | {name: [0, 1]})


@pytest.mark.parametrize("name", ["labels", "condition"])
def test_conditioning_that_the_prior_does_not_take_is_an_error(make_prior: MakePrior, name: str) -> None:
    value = {"labels": 0, "condition": torch.zeros(2, 1, 3, 4)}[name]
    with pytest.raises(ValueError, match=name):
        make_prior("gated").sample(2, (3, 4), **{name: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_draws_what_the_cpu_draws(
    make_prior: MakePrior, conditioning: Conditioning, executor: str, kind: str
) -> None:
    prior = make_prior(kind, **BOTH)
    shape = SHAPES[kind]
    options = conditioning(prior, 9, shape) | {
        "known": some_known(prior, 9, shape, 0.3, seed=0),
        "top_p": 0.9,
    }
    expected = prior.sample(9, shape, method="reference", **options)
    drawn = prior.cuda().sample(9, shape, method=executor, **options)
    assert drawn.is_cuda and torch.equal(drawn.cpu(), expected)
