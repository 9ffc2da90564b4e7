"""``precision="bfloat16"``: factors of products are rounded, all else is as ever."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.priors.small import BOTH, Conditioning
from tests.sampling.programs import TWO_STREAMS, Programmed
from vqfast.ops import library
from vqfast.priors import PixelCNN, WaveNet
from vqfast.priors.base import CausalPrior
from vqfast.sampling import parallel
from vqfast.sampling.executors import native
from vqfast.sampling.precision import BFLOAT16, check_precision
from vqfast.sampling.program import CODES, Program, Step, Term

MakePrior = Callable[..., CausalPrior]
NATIVE = pytest.mark.skipif(library.unavailable() is not None, reason="no native library here")


@pytest.fixture(params=[False, True], ids=["widened", "pairs"])
def pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways in which kernels multiply, whichever is faster here; pairs where the CPU has them."""
    monkeypatch.setattr(library, "multiplies_pairs", lambda: request.param)
    return request.param


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to 8 bits of a mantissa, ties to even."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def test_values_and_matrices_are_rounded_and_nothing_else() -> None:
    program = Program(
        (Step((Term(CODES, ((0, -1),), "look"),), 6, "bias"), Step((Term(0, weight="w"),), 4, "bias2")), 4
    )
    rng = np.random.default_rng(0)
    weights = {"look": rng.normal(size=(1, 4, 6)), "bias": rng.normal(size=6)}
    weights |= {"w": rng.normal(size=(1, 6, 4)), "bias2": rng.normal(size=4)}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    given = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    logits = parallel.logits(program, given, torch.tensor([[[2, 0]]]), precision=BFLOAT16)[0, :, 0, 1].numpy()
    value = weights["look"][0, 2] + weights["bias"]
    expected = nearest_bfloat16(value) @ nearest_bfloat16(weights["w"][0]) + weights["bias2"]
    assert np.allclose(logits, expected, rtol=0, atol=1e-6)
    assert not np.allclose(logits, value @ weights["w"][0] + weights["bias2"], rtol=0, atol=1e-3)


def test_all_executors_draw_alike(
    make_prior: MakePrior, conditioning: Conditioning, executor: str, kind: str, pairs: bool
) -> None:
    """Sums differ in the order of their summands alone."""
    if pairs and executor != "native":
        pytest.skip("the native executor alone multiplies in two ways")
    prior = make_prior(kind, num_embeddings=256, channels=40, **BOTH)
    shape = (3, 5) if prior.ndim == 2 else (15,)
    options = {"precision": BFLOAT16, "seed": 3} | conditioning(prior, 50, shape)
    expected = prior.sample(50, shape, method="reference", **options)
    drawn = prior.sample(50, shape, method=executor, **options)
    exact = prior.sample(50, shape, **options | {"precision": None})
    differs = [(other != expected).flatten(1).any(1).double().mean() for other in (drawn, exact)]
    assert 2 * differs[0] < differs[1]


@NATIVE
@pytest.mark.parametrize("channels", [7, 33])
def test_odd_channels(make_prior: MakePrior, conditioning: Conditioning, pairs: bool, channels: int) -> None:
    """The last channel of an odd number has half a pair."""
    for kind, shape in (("gated", (3, 4)), ("wavenet", (12,))):
        prior = make_prior(kind, channels=channels, condition_channels=3)
        options = {"precision": BFLOAT16} | conditioning(prior, 30, shape)
        expected = prior.sample(30, shape, method="torch", **options)
        drawn = prior.sample(30, shape, method="native", **options)
        assert (drawn != expected).flatten(1).any(1).double().mean() < 0.07


@NATIVE
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("channels", [6, 7, 40])
@pytest.mark.parametrize("activation", ["tanh", "gate"])
def test_an_infinite_factor_stays_in_its_channels(
    pairs: bool, batch: int, channels: int, activation: str
) -> None:
    """Channels are padded to pairs and to tiles: infinity times a padded zero is in no draw."""
    width = channels * (1 + (activation == "gate"))
    steps = [
        Step((Term(CODES, ((0, -1),), "look"),), channels),
        Step((Term(0, weight="w"),), width, activation=activation),
        Step((Term(1, weight="x"),), 3),
    ]
    prior = Programmed(steps, 0)
    prior.weights |= {"w": prior.weights["w"].abs(), "look": torch.full((1, 3, channels), torch.inf).double()}
    options = {"precision": BFLOAT16, "temperature": 10}
    expected = prior.sample(batch, (1, 6), method="torch", **options)
    assert len(expected.unique()) > 1
    assert torch.equal(prior.sample(batch, (1, 6), method="native", **options), expected)


@NATIVE
@pytest.mark.parametrize("batch", [1, 2, 3, 16, 17, 33, 50])
def test_any_number_of_rows(pairs: bool, batch: int) -> None:
    """Whole numbers are summed without rounding, in tiles of any number of rows."""
    prior = Programmed(
        [Step((Term(CODES, ((0, -1),), "look"),), 40), Step((Term(0, weight="w"),), 130)], num_embeddings=130
    )
    prior.weights = {name: weight.round() for name, weight in prior.weights.items()}
    options = {"precision": BFLOAT16, "temperature": 30, "condition": torch.zeros(batch, 2, 1, 9).double()}
    expected = prior.sample(batch, (1, 9), method="torch", **options)
    assert torch.equal(prior.sample(batch, (1, 9), method="native", **options), expected)


@NATIVE
def test_exact_sums_give_equal_draws(pairs: bool) -> None:
    """Strides, bare values and residuals; whole numbers are summed without rounding."""
    steps = [Step(s.terms, s.width, s.bias, stride=s.stride, residual=s.residual) for s in TWO_STREAMS[:4]]
    steps += [Step((Term(1), Term(3, ((0, 0), (0, -2)), "x")), 4), Step((Term(4, weight="y"),), 3)]
    prior = Programmed(steps)
    prior.weights = {name: weight.round() for name, weight in prior.weights.items()}
    condition = torch.randn(9, 2, 5, 6).double()
    options = {"precision": BFLOAT16, "condition": condition.round(), "temperature": 30}
    expected = prior.sample(9, (5, 6), method="reference", **options)
    assert torch.equal(prior.sample(9, (5, 6), method="torch", **options), expected)
    assert torch.equal(prior.sample(9, (5, 6), method="native", **options), expected)


@NATIVE
def test_threads_and_several_blocks(monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    monkeypatch.setattr(native, "_PRODUCTS", 1)
    monkeypatch.setattr(native, "_busy", lambda: False)
    torch.manual_seed(0)
    prior = WaveNet(16, 16, 9, dilation_cycle=9).eval()
    alone = prior.sample(17, (300,), precision=BFLOAT16, method="native")
    torch.set_num_threads(3)
    try:
        assert torch.equal(prior.sample(17, (300,), precision=BFLOAT16, method="native"), alone)
    finally:
        torch.set_num_threads(1)
    expected = prior.sample(17, (300,), precision=BFLOAT16, method="torch")
    assert (alone == expected).double().mean() > 0.95


def test_several_codes_at_a_position(executor: str) -> None:
    torch.manual_seed(0)
    prior = PixelCNN(16, 8, 2, num_quantizers=3).eval()
    expected = prior.sample(20, (2, 3), precision=BFLOAT16, method="reference")
    drawn = prior.sample(20, (2, 3), precision=BFLOAT16, method=executor)
    assert (drawn != expected).flatten(1).any(1).double().mean() <= 0.1


def test_a_prior_of_another_dtype_keeps_its_own(make_prior: MakePrior) -> None:
    prior = make_prior("gated")
    drawn = prior.sample(9, (3, 4), precision=BFLOAT16)
    assert torch.equal(prior.float().sample(9, (3, 4), precision=BFLOAT16), drawn)
    assert torch.equal(prior.bfloat16().sample(9, (3, 4), precision=BFLOAT16).unique(), torch.arange(5))


@pytest.mark.parametrize(
    ("precision", "message"),
    [("bf16", "precision is 'bf16'; want 'bfloat16'"), ("float32", "want 'bfloat16'")],
)
def test_an_unknown_precision_is_an_error(make_prior: MakePrior, precision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_prior("gated").sample(1, (2, 2), precision=precision)


def test_triton_has_no_precision() -> None:
    check_precision(None, "triton")
    with pytest.raises(ValueError, match="precision is 'bfloat16'; want None with triton, or a prior in"):
        check_precision(BFLOAT16, "triton")
