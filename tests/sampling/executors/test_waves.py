"""Rows drawn side by side by the native executor: the draws are those of the raster order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.sampling.programs import Programmed, causal_steps, check_sampling
from vqfast.ops import library
from vqfast.priors import PixelCNN
from vqfast.sampling.executors import native
from vqfast.sampling.program import AnyStep
from vqfast.sampling.wavefront import orders, raster, wavefront

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason="no native library here")


@pytest.fixture(autouse=True)
def _waves_of_any_batch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # hypothesis wants one fixture for all examples
        patch.setattr(native, "_IN_WAVES", 100)
        patch.setattr(native, "_PRODUCTS", 1)  # small steps are split among threads too
        patch.setattr(native, "_busy", lambda: False)
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    steps=causal_steps(plain=True),
    grid=st.sampled_from([(3, 9), (5, 14), (6, 4), (9, 3)]),
    number=st.integers(1),
)
def test_any_causal_program_in_any_order(steps: list[AnyStep], grid: tuple[int, int], number: int) -> None:
    fronts = orders(Programmed(steps).program, *grid)
    front = fronts[number % len(fronts)]
    event(f"rows in flight: {front.rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "wavefront", lambda *_: front)
        check_sampling(steps, "native", grid)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_a_gated_prior_draws_what_it_draws_in_raster_order(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, batch: int, precision: str | None, threads: int
) -> None:
    in_waves, counted = _drawn(dtype, batch, precision)
    monkeypatch.setattr(native, "wavefront", lambda program, weights, *grid: raster(program, *grid))
    one_by_one, counted_again = _drawn(dtype, batch, precision)
    assert counted == counted_again == batch * 7 * 40 * 2
    assert torch.equal(in_waves, one_by_one)  # sums in another order may change a draw in a million


def _drawn(dtype: torch.dtype, batch: int, precision: str | None) -> tuple[Tensor, int]:
    torch.manual_seed(0)
    prior = PixelCNN(
        9, 24, 3, num_quantizers=2, num_classes=3, condition_channels=2, head_channels=20, dtype=dtype
    )
    assert wavefront(*prior.lower(), 7, 40).rows > 1
    counted = 0

    def progress(done: int) -> None:
        nonlocal counted
        counted += done

    codes = prior.sample(
        batch,
        (7, 40),
        labels=torch.arange(batch) % 3,
        condition=torch.randn(batch, 2, 7, 40, generator=torch.Generator().manual_seed(1)).to(dtype),
        precision=precision,
        method="native",
        progress=progress,
    )
    return codes, counted


def test_known_codes_stay_in_waves() -> None:
    prior = PixelCNN(5, 8, 2, head_channels=8, dtype=torch.float64)
    known = torch.arange(2 * 6 * 30).view(2, 6, 30) % 7 - 2
    given_codes = known.clamp(min=-1)
    options = {"known": given_codes, "seed": 4, "temperature": 0.8}
    drawn = prior.sample(2, (6, 30), method="native", **options)
    assert torch.equal(drawn[given_codes >= 0], given_codes[given_codes >= 0])
    assert torch.equal(drawn, prior.sample(2, (6, 30), method="torch", **options))
