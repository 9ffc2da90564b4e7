"""The noise and the draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.sampling.chi_square import p_value
from vqfast.sampling.draw import Draw, gumbel, philox

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**64 - 1)
PLAIN = settings(derandomize=True, deadline=None, max_examples=100)


def philox_by_hand(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds as Salmon et al. 2011 write them, in Python's own integers."""
    (left0, right0, left1, right1), (k0, k1) = counter, key
    for round_ in range(10):
        if round_:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * left0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left1, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ k0, low1, high0 ^ right1 ^ k1, low0
    return left0, right0, left1, right1


def philox_words(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(word) for word in philox(tuple(torch.tensor(c) for c in counter), key))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # kat_vectors of Random123, philox4x32 10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter: str, key: str, words: str) -> None:
    counter, key, words = (tuple(int(word, 16) for word in text.split()) for text in (counter, key, words))
    assert philox_words(counter, key) == words


@PLAIN
@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_philox_is_ten_rounds_of_the_paper(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert philox_words(counter, key) == philox_by_hand(counter, key)


@PLAIN
@given(seed=SEED, number=st.integers(0, 2**63 - 1), position=WORD, category=st.integers(0, 1000))
@example(seed=2**64 - 1, number=2**63 - 1, position=2**32 - 1, category=1000)
@example(seed=2**32, number=2**32, position=0, category=0)
def test_gumbel_is_a_function_of_seed_number_position_and_category(
    seed: int, number: int, position: int, category: int
) -> None:
    counter = (category // 4, position, number % 2**32, number // 2**32)
    word = philox_by_hand(counter, (seed % 2**32, seed // 2**32))[category % 4]
    noise = gumbel(seed, torch.tensor([number]), torch.tensor([position]), category + 1)
    assert noise.shape == (1, 1, category + 1)
    assert noise[0, 0, -1].item() == pytest.approx(-math.log(-math.log((word + 0.5) / 2**32)), rel=1e-12)


@PLAIN
@given(categories=st.integers(1, 9), shuffle=st.randoms(use_true_random=False))
def test_gumbel_of_a_part_in_any_order_is_a_part_of_the_whole(categories: int, shuffle) -> None:
    numbers, positions = torch.tensor([3, 0, 2**32, 2**40 + 3, 7]), torch.arange(6)
    whole = gumbel(11, numbers, positions, 10)
    rows = torch.tensor(shuffle.sample(range(5), shuffle.randint(1, 5)))
    columns = torch.tensor(shuffle.sample(range(6), shuffle.randint(1, 6)))
    part = gumbel(11, numbers[rows], positions[columns], categories)
    assert torch.equal(part, whole[rows][:, columns, :categories])


def test_gumbel_has_the_gumbel_distribution() -> None:
    noise = gumbel(0, torch.arange(100), torch.arange(40), 50)
    error = 1 / math.sqrt(noise.numel())  # times 1.3 for the mean, times 3.5 for the variance
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=5 * error)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=15 * error)
    assert scipy.stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["numbers", "positions", "categories"])
def test_neighbours_noise_is_uncorrelated(dim: int) -> None:
    uniform = gumbel(5, torch.arange(60), torch.arange(60), 60).neg().exp().neg().exp() - 0.5
    neighbours = uniform.narrow(dim, 0, 59) * uniform.narrow(dim, 1, 59) * 12  # of mean 0 and variance 1
    assert abs(neighbours.mean().item()) < 4 / math.sqrt(neighbours.numel())


@pytest.mark.parametrize(("word", "value"), [(0, -math.log(33 * math.log(2))), (2**32 - 1, 33 * math.log(2))])
def test_gumbel_is_finite_at_the_ends(monkeypatch: pytest.MonkeyPatch, word: int, value: float) -> None:
    monkeypatch.setattr(
        "vqfast.sampling.draw.philox", lambda counter, key: (torch.full((1, 1, 1), word),) * 4
    )
    noise = gumbel(0, torch.tensor([0]), torch.tensor([0]), 4)
    assert noise[0, 0].tolist() == pytest.approx([value] * 4)


def test_no_two_draws_share_their_noise() -> None:
    numbers = torch.cat([torch.arange(10), 2**32 + torch.arange(10), 2**33 + torch.arange(10)])
    noise = torch.stack([gumbel(s, numbers, torch.arange(40), 32) for s in (0, 1, 2**32, 2**33, 2**64 - 1)])
    groups = noise.unflatten(-1, (-1, 4)).flatten(0, -2)  # a counter's four words
    assert len(groups.unique(dim=0)) == len(groups)


# The draw


def support(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> set[int]:
    """The codes that top_k, then top_p keep, found by sorting."""
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
        assert p_value(counts[weights > 0], weights[weights > 0] / weights.sum()) > 1e-4  # of 90 cases
