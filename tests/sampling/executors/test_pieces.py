"""Early products of float32 numbers in pieces of bfloat16, where a CPU has tiles; elsewhere as they are."""

from __future__ import annotations

import pytest
import torch

from tests.priors.small import BOTH, Conditioning, MakePrior
from tests.sampling.programs import Programmed
from vqfast.ops import library
from vqfast.sampling.executors import native
from vqfast.sampling.program import CODES, Step, Term

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason="no native library here")
ABOVE = ((-1, 0), (-1, 1))
GRID = (3, 7)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_PIECES_FROM", 1)


def float32(prior: Programmed) -> Programmed:
    prior.weights = {name: weight.float() for name, weight in prior.weights.items()}
    return prior


@pytest.mark.parametrize("channels", [4, 7, 33, 64])
def test_draws_are_those_of_float64(
    make_prior: MakePrior, conditioning: Conditioning, kind: str, channels: int
) -> None:
    heads = {"num_heads": 1} if kind == "snail" else {}
    prior = make_prior(kind, num_embeddings=40, channels=channels, **heads, **BOTH)
    shape = GRID if prior.ndim == 2 else (40,)
    for num in (1, 50):
        options = {"seed": 5} | conditioning(prior, num, shape)
        expected = prior.double().sample(num, shape, method="torch", **options)
        drawn = prior.float().sample(num, shape, method="native", **options)
        assert (drawn != expected).flatten(1).any(1).double().mean() < 0.03


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 17, 33, 50, 100])
def test_any_number_of_rows(batch: int) -> None:
    """Whole numbers of up to 24 bits are summed without rounding, each piece in its place."""
    steps = [
        Step((Term(CODES, ABOVE, "look"),), 40),
        Step((Term(0, ABOVE, "w"),), 130),
    ]
    prior = float32(Programmed(steps, num_embeddings=130))
    prior.weights["look"] = (prior.weights["look"] * 300).round()
    prior.weights["w"] = (prior.weights["w"] * 300).round()
    options = {"temperature": 3e5, "condition": torch.zeros(batch, 2, *GRID)}
    expected = prior.sample(batch, GRID, method="torch", **options)
    assert len(expected.unique()) > 20 or batch < 16
    assert torch.equal(prior.sample(batch, GRID, method="native", **options), expected)


@pytest.mark.parametrize("extreme", [torch.inf, -torch.inf, 3.4e38, 1e-30, torch.nan])
@pytest.mark.parametrize("channels", [6, 7, 40])
def test_extreme_numbers(extreme: float, channels: int) -> None:
    """Infinities are in the sums that float32 has them in: their pieces aren't numbers."""
    steps = [
        Step((Term(CODES, ((0, -1),), "look"),), channels),
        Step((Term(0, ABOVE, "w"),), 2 * channels, activation="gate"),
        Step((Term(1, weight="x"),), 3),
    ]
    prior = float32(Programmed(steps, num_embeddings=3))
    prior.weights["w"] = prior.weights["w"].abs() * (1e30 if extreme == 1e-30 else 0.5)
    prior.weights["look"][0, 1, 1:] = extreme
    options = {"temperature": 10, "condition": torch.zeros(40, 2, *GRID)}
    if extreme != extreme:
        with pytest.raises(ValueError, match="are NaN"):
            prior.sample(40, GRID, method="native", **options)
        return
    expected = prior.sample(40, GRID, method="torch", **options)
    assert len(expected.unique()) == 3
    assert torch.equal(prior.sample(40, GRID, method="native", **options), expected)


def test_an_infinite_weight() -> None:
    """Of a channel that is never zero."""
    steps = [
        Step((Term(CODES, ((-1, 0),), "look"),), 5, "b"),
        Step((Term(0, weight="w"),), 6, activation="gate"),
        Step((Term(1, weight="x"),), 3),
    ]
    prior = float32(Programmed(steps, num_embeddings=3))
    prior.weights["w"][0, 2, :5] = torch.inf
    options = {"temperature": 10, "condition": torch.zeros(40, 2, *GRID)}
    expected = prior.sample(40, GRID, method="torch", **options)
    assert len(expected.unique()) == 3
    assert torch.equal(prior.sample(40, GRID, method="native", **options), expected)
