"""The order of the wavefront, followed event by event: whatever is read has been computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampling.programs import TWO_STREAMS, Programmed, causal_steps
from vqfast.priors.pixelcnn import PixelCNN
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Phase, Program, Step, Term, available
from vqfast.sampling.wavefront import Wavefront, orders, raster, wavefront

Cell = tuple[int, int, int]  # of the value of a step, or of a code: source, y, x


def events(program: Program, front: Wavefront) -> Iterator[list[tuple[int, bool, int, int]]]:
    """What is computed at the same time: ``(step, early, y, x)``, the step -1 for a draw."""
    phases = program.phases()
    for moment in range(front.moments):
        rows = range(front.height)
        now = [(y, x) for y in rows if 0 <= (x := moment - y * front.distance) < front.width]
        assert len(now) <= front.rows
        starting = [(y, x) for y, x in now if x % front.chunk == 0]
        assert starting in ([], now)
        for number, lead in enumerate(front.leads):
            yield [
                (number, True, y, column)
                for y, x in starting
                for column in range(x + lead if x else 0, min(front.width, x + front.chunk + lead))
            ]
        for phase in (Phase.POSITION, *range(Phase.CODE, Phase.CODE + program.num_quantizers)):
            for number in range(len(program.steps)):
                yield [(number, False, y, x) for y, x in now if phases[number] == phase]
            if phase < Phase.CODE + program.num_quantizers - 1:
                yield [(-1, False, y, x) for y, x in now]


def follow(program: Program, front: Wavefront) -> None:
    """Fails where something is read before it is there, and unless all is computed once."""
    phases = program.phases()
    known: set[Cell] = set()
    partial: set[Cell] = set()
    drawn: dict[tuple[int, int], int] = {}
    for together in events(program, front):
        done: set[Cell] = set()
        for number, early, y, x in together:
            if number < 0:
                code = drawn.get((y, x), 0)
                drawn[y, x] = code + 1
                last = len(program.steps) - program.num_quantizers + code
                assert (last, y, x) in known
                done.add((CODES - code, y, x))
                continue
            step = program.steps[number]
            assert isinstance(step, Step)
            for term in step.terms:
                for dy, dx in term.taps:
                    if (available(term.source, (dy, dx), phases) == Phase.ROW) != early:
                        continue
                    there = 0 <= y + dy < front.height and 0 <= x + dx < front.width
                    read = (term.source, y + dy, x + dx)
                    assert not there or term.source == CONDITION or read in known, (number, y, x, read)
            if early and phases[number] != Phase.ROW:
                assert (number, y, x) not in partial
                partial.add((number, y, x))
                continue
            if not early:
                assert (number, y, x) in partial
            assert step.residual is None or (step.residual, y, x) in known
            assert (number, y, x) not in known
            done.add((number, y, x))
        known |= done
    size = (len(program.steps) + program.num_quantizers) * front.height * front.width
    assert len(known) == size


def ordered(steps: list[AnyStep], grid: tuple[int, int]) -> tuple[Program, Wavefront]:
    prior = Programmed(steps)
    return prior.program, wavefront(*prior.lower(), *grid)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=causal_steps(), grid=st.sampled_from([(1, 6), (4, 2), (3, 9), (6, 1), (5, 14)]))
def test_whatever_is_read_is_there(steps: list[AnyStep], grid: tuple[int, int]) -> None:
    whole = [step for step in steps if isinstance(step, Step) and step.stride == 1]
    if len(whole) < len(steps):
        program, front = ordered(steps, grid)
        assert front == raster(program, *grid)
        return
    follow(*ordered(steps, grid))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(steps=causal_steps(plain=True), grid=st.sampled_from([(4, 2), (3, 9), (5, 14)]))
def test_whatever_is_read_is_there_in_any_order(steps: list[AnyStep], grid: tuple[int, int]) -> None:
    program = Program(tuple(steps), 3)
    for front in orders(program, *grid):
        follow(program, front)


def gated(layers: int, width: int) -> tuple[Program, Wavefront]:
    program, weights = PixelCNN(5, 4, layers, head_channels=4).lower()
    return program, wavefront(program, weights, 6, width)


@pytest.mark.parametrize(("layers", "width"), [(1, 20), (3, 20), (5, 40)])
def test_a_gated_prior_has_rows_side_by_side(layers: int, width: int) -> None:
    program, front = gated(layers, width)
    assert front.rows > 1
    follow(program, front)


@pytest.mark.parametrize("change", [{"distance": -1, "chunk": 0}, {"leads": 1}], ids=["nearer", "no leads"])
def test_less_is_not_enough(change: dict[str, int]) -> None:
    program, front = gated(3, 40)
    if "leads" in change:
        front = replace(front, leads=tuple(max(0, lead - 1) for lead in front.leads))
    else:
        front = replace(front, distance=front.distance - front.chunk)
    with pytest.raises(AssertionError):
        follow(program, front)


def test_positions_of_all_moments_are_those_of_the_grid() -> None:
    _, front = gated(3, 40)
    assert front.positions(0) == 0 and front.positions(front.moments) == 6 * 40
    assert front.positions(front.moments - 1) == 6 * 40 - 1


def test_strides_and_single_rows_keep_the_raster_order() -> None:
    program, front = ordered(TWO_STREAMS, (6, 40))
    assert front == raster(program, 6, 40) and front.rows == 1
    left = [Step((Term(CODES, ((0, -1),), "a"),), 3)]
    assert ordered(left, (1, 400))[1].rows == 1


def test_rows_that_read_nothing_above_are_drawn_all_at_once() -> None:
    left = [Step((Term(CODES, ((0, -1),), "a"),), 3), Step((Term(0, weight="b"),), 3)]
    program, front = ordered(left, (4, 10))
    assert front.distance == 1 and front.rows == 4
    follow(program, front)
