"""Attention as a step of a program."""

from __future__ import annotations

import pytest

from tests.sampling.programs import check_parallel, check_sampling, reads
from vqfast.sampling.attention import Attention
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Phase, Program, Step, Term


def attending(own: bool) -> list[AnyStep]:
    """Two attentions that share a query; if no position sees itself, its own code is among what it keeps.

    The key is read on both sides of a position too, so that its cache has margins; one of the values isn't.
    """
    past, here = ((-1, 1), (0, -1)), () if own else (Term(CODES, weight="own"),)
    return [
        Step((Term(CODES, past, "past"),), 4, "bias", activation="elu"),
        Step((Term(0, past, "key"), *here), 6),
        Step((Term(1, (*past, (0, 0)), "value"), Term(CONDITION, weight="map")), 3),
        Step((Term(0, weight="query"),), 6),
        Attention(3, 1, 1, 6, heads=3, scale=0.7, own=own),
        Attention(3, 1, 2, 3, scale=-1.5, own=own),
        Step((Term(4, weight="first"), Term(5, past, "second")), 3, residual=5),
    ]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("last", [6, 7], ids=["logits of attention", "summed"])
def test_executor_runs_what_attentions_allow(executor: str, own: bool, last: int) -> None:
    check_sampling(attending(own)[:last], executor, (3, 4))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("grid", [(1, 6), (5, 1), (3, 4)])
def test_attention_at_all_positions_at_once_is_its_definition(own: bool, grid: tuple[int, int]) -> None:
    check_parallel(attending(own), grid)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query": -1}, ValueError, "query is -1; want an integer, 0 or more"),
        ({"width": 0}, ValueError, "width is 0; want a positive integer"),
        ({"heads": 2.0}, TypeError, "heads is 2.0; want a positive integer"),
        ({"heads": 3}, ValueError, "heads is 3; want a divisor of 4, the width"),
        ({"scale": "1"}, TypeError, "scale is '1'; want a finite number"),
        ({"own": 1}, TypeError, "own is 1; want"),
    ],
    ids=str,
)
def test_attention_names_its_wrong_argument(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Attention(**{"query": 0, "key": 0, "value": 0, "width": 4, **options})


@pytest.mark.parametrize(
    "attention",
    [Attention(0, 1, 3, 4), Attention(0, 2, 1, 4), Attention(0, 1, 2, 4), Attention(0, 1, 2, 2, heads=2)],
    ids=["later step", "other channels of the key", "other channels of the value", "heads divide no key"],
)
def test_program_with_an_attention_that_no_executor_runs_is_refused(attention: Attention) -> None:
    steps = [Step((reads(CODES, ((0, -1),)),), width) for width in (3, 3, 2)]
    with pytest.raises(ValueError, match="step 3 is Attention"):
        Program((*steps, attention), 3)


def test_attention_to_the_own_code_is_refused() -> None:
    code, before = Step((reads(CODES),), 2), Step((reads(CODES, ((0, -1),)),), 2)
    phases = Program((code, before, Attention(1, 0, 0, 2)), 2).phases()
    assert phases == [Phase.CODE, Phase.POSITION, Phase.POSITION]
    for sources, own in (((0, 0, 0), False), ((1, 0, 1), True), ((1, 1, 0), True)):
        with pytest.raises(ValueError, match="isn't causal"):
            Program((code, before, Attention(*sources, 2, own=own)), 2)
