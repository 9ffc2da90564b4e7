"""Every executor draws what the reference draws, which has the model's distribution."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.priors.small import BOTH, CONDITIONS, SHAPES, Conditioning, MakePrior, some_known
from tests.sampling.chi_square import p_value
from vqfast.ops import registry
from vqfast.priors.base import CausalPrior
from vqfast.sampling.draw import Draw


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
        ("snail", {"num_heads": 2, "kernel_size": 5}),
        ("snail", {"num_heads": 0, "num_blocks": 1}),
        ("wavenet", {"dilation_cycle": 1}),
        ("wavenet", {"num_layers": 6, "dilation_cycle": 6}),
        ("wavenet", {"num_mixtures": 3, "num_embeddings": 50}),
    ],
)
def test_executor_draws_what_the_naive_sampler_draws_from_odd_models(
    make_prior: MakePrior, executor: str, kind: str, overrides: dict[str, int]
) -> None:
    prior = make_prior(kind, **overrides)
    for shape in ((1, 1), (1, 6), (6, 1), (3, 2)) if prior.ndim == 2 else ((1,), (2,), (37,)):
        expected = prior.sample(4, shape, method="reference")
        assert torch.equal(prior.sample(4, shape, method=executor), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shape"), [("gated", (2, 9)), ("wavenet", (9,))])
def test_executor_draws_what_the_naive_sampler_draws_where_noise_is_large(
    make_prior: MakePrior, executor: str, kind: str, shape: tuple[int, ...]
) -> None:
    prior = make_prior(kind, num_embeddings=1021)
    expected = prior.sample(
        512, shape, method="reference", batch_size=512
    )  # 4 million numbers of noise for a row
    assert torch.equal(prior.sample(512, shape, method=executor, batch_size=512), expected)


@torch.no_grad()
def test_float32_draws_differ_only_where_two_codes_agree_to_rounding(
    make_prior: MakePrior, executor: str, kind: str
) -> None:
    """Compares each draw with a draw in float64, given the earlier codes: 1 in 100,000 may differ."""
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


@pytest.mark.slow
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


def distribution(
    prior: CausalPrior, grids: Tensor, temperature: float, extra: dict[str, Tensor]
) -> np.ndarray:
    """Probability of each grid: the product of softmaxes of the model's logits."""
    extra = {name: value.expand(len(grids), *value.shape[1:]) for name, value in extra.items()}
    log_p = (prior(grids, **extra) / temperature).log_softmax(1).gather(1, grids.unsqueeze(1))
    return log_p.flatten(1).sum(1).exp().numpy()


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
    assert p_value(counts, distribution(prior, grids, temperature, extra)) > 1e-3
    assert p_value(counts, distribution(prior, grids, 0.9, extra)) < 1e-6


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
