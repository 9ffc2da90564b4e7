"""Rows of the grid that the Triton executor draws side by side; interpreted, or on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.sampling.programs import Programmed, causal_steps, check_sampling
from vqfast.ops import registry
from vqfast.priors.pixelcnn import PixelCNN
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import torch as plain
from vqfast.sampling.executors import triton as executor
from vqfast.sampling.executors.triton_tunings import SAMPLING, Launch, Tuning
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Step, Term
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import Wavefront, raster, wavefront

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
here = pytest.mark.skipif(
    not (torch.cuda.is_available() or registry.interpreted()),
    reason="run in the interpreter by test_triton.py",
)
# images, members, rows, columns, depth, warps, stages
SUMMED, MULTIPLIED = Launch(1, 1, 4, 16, 16, 4, 1), Launch(2, 1, 16, 16, 16, 4, 2)
# Early: of codes above, and of that and the map, a column further right. Late: with partial sums.
STEPS: list[AnyStep] = [
    Step((Term(CODES, ((-1, 0), (-2, 1)), "a"),), 4, activation="relu"),
    Step((Term(0, ((0, 1), (0, -1)), "b"), Term(CONDITION, weight="c")), 8, "d", activation="gate"),
    Step((Term(CODES, ((0, -1), (-1, 1)), "e"), Term(1, weight="f"), Term(1)), 4, residual=0),
    Step((Term(2, weight="g"), Term(2, ((0, -1), (-1, 0)), "h")), 3),
]


def front_of(height: int, width: int, chunk: int) -> Wavefront:
    """The order of the steps above with chunks of so many columns; rows are as near as that allows."""
    front = wavefront(*Programmed(STEPS).lower(), height, 99)
    assert front.leads == (1, 0, 0, 0)
    # Step 0 reads codes two columns further right, with its lead, and they are there up to the chunk.
    return replace(front, width=width, chunk=chunk, distance=-(-(chunk + 1) // chunk) * chunk)


def drawn_and_expected(
    front: Wavefront,
    launch: Launch,
    images: int,
    dtype: torch.dtype = torch.float64,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes of the steps above, in the order of the front, and by the torch executor in float64."""
    prior = Programmed(STEPS)
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(images, 2, front.height, front.width, generator=generator, dtype=torch.float64)
    known = torch.full((images, front.height, front.width, 1), -1)

    def request(device: str, dtype: torch.dtype) -> Request:
        weights = {name: weight.to(device, dtype) for name, weight in prior.weights.items()}
        draw = Draw(0, torch.arange(images, device=device), top_k=top_k)
        given = condition.to(device, dtype)
        return Request(prior.program, weights, draw, known.to(device), None, given, lambda codes: codes)

    drawn = executor.Sampling(request(DEVICE, dtype), Tuning(launch, launch), front).draw()
    return drawn.cpu(), plain.run(request("cpu", torch.float64))


@here
@pytest.mark.every
@settings(derandomize=True, deadline=None, max_examples=3)
@given(steps=causal_steps(plain=True), grid=st.sampled_from([(3, 7), (2, 9)]))
def test_any_causal_program_draws_the_same(steps: list[AnyStep], grid: tuple[int, int]) -> None:
    assume(len(steps) < 4 and wavefront(*Programmed(steps).lower(), *grid).rows > 1)
    check_sampling(steps, "triton", grid)


@here
@pytest.mark.parametrize(
    ("chunk", "width", "launch", "images", "dtype"),
    [
        (1, 5, SUMMED, 1, torch.float64),
        (2, 9, SUMMED, 2, torch.float64),
        (3, 9, MULTIPLIED, 3, torch.float32),
    ],
    ids=str,
)
def test_chunks_of_any_size_and_rows_that_end_within_one(
    chunk: int, width: int, launch: Launch, images: int, dtype: torch.dtype
) -> None:
    front = front_of(3, width, chunk)
    assert front.rows > 1
    drawn, expected = drawn_and_expected(front, launch, images, dtype)
    assert torch.equal(drawn, expected)


@here
def test_draws_in_pytorch_of_rows_side_by_side() -> None:
    drawn, expected = drawn_and_expected(front_of(2, 4, 1), SUMMED, 1, top_k=2)
    assert torch.equal(drawn, expected)


@here
@pytest.mark.parametrize("change", ["distance", "leads"])
def test_less_than_the_order_says_is_not_enough(change: str) -> None:
    """The control: rows that are one chunk nearer, and steps without the columns that others read."""
    front = front_of(3, 9, 2)
    less = {"distance": front.distance - 2, "leads": (0,) * len(front.leads)}
    drawn, expected = drawn_and_expected(replace(front, **{change: less[change]}), SUMMED, 2)
    assert not torch.equal(drawn, expected)


def request_of(images: int, side: int) -> Request:
    program, weights = PixelCNN(16, 8, 3).to(torch.bfloat16).lower()
    known = torch.full((images, side, side, 1), -1)
    return Request(program, weights, Draw(0, torch.arange(images)), known, None, None, lambda codes: codes)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_small_batches_draw_rows_side_by_side(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    """As long as their positions don't fill a tile of tensor cores, which has room for all of them."""
    monkeypatch.setattr(executor, "tunings_of", lambda weight: SAMPLING[2][arch])
    seen = set()
    for images in (1, 4, 8, 30, 64, 128, 256, 512, 3000, 10_000):
        request = request_of(images, 64)
        front = executor.order_of(request)
        group = executor.tuning_of(request.weight, images)
        tuning = executor.tuning_of(request.weight, images, front.rows)
        positions = group.position.images * front.rows
        seen.add(front.rows > 1)
        assert images > 4 or front.rows > 1
        assert images <= 512 or (front, tuning) == (raster(request.program, 64, 64), group)
        assert tuning.row == group.row
        assert tuning.position[:2] == group.position[:2]  # the same groups of blocks
        assert front.rows == 1 or positions <= tuning.position.rows <= 32
    assert seen == {True, False}


def test_a_row_that_is_wide_enough_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "tunings_of", lambda weight: SAMPLING[2]["sm_90"])
    rows: list[Any] = [executor.order_of(request_of(1, side)).rows for side in (6, 12, 64)]
    assert rows[0] == 1 < rows[1] <= rows[2]
