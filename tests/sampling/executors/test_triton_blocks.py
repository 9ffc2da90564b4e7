"""Blocks of the Triton executor that wait for each other; interpreted, each block in a thread."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.blocks import in_threads
from tests.interpreter import assert_passes, interpreted
from tests.sampling.programs import TWO_STREAMS
from vqfast.ops import registry
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import torch as plain
from vqfast.sampling.executors import triton as executor
from vqfast.sampling.executors.triton_tunings import Launch, Tuning
from vqfast.sampling.program import CODES, CONDITION, Program, Step, Term
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import wavefront

here = pytest.mark.skipif(not registry.interpreted(), reason="run in the interpreter by the last test")
# images, members, rows, columns, depth, warps, stages
SUMMED, MULTIPLIED = Launch(2, 3, 2, 16, 16, 4, 1), Launch(2, 8, 16, 16, 16, 4, 1)
ROWS = (2, 3)  # a grid whose rows are drawn side by side


def sample(
    make_prior: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    launch: Launch,
    grid: tuple[int, int] = (2, 2),
    **options: int,
) -> tuple[Any, Any]:
    """Codes of two images: drawn in one launch a row, and by the torch executor."""
    monkeypatch.setattr(executor, "members_of", lambda launch, *_: launch.members)
    monkeypatch.setattr(executor, "tunings_of", lambda weight: {1 << 30: Tuning(launch, launch)})
    prior = make_prior(kind, channels=4, num_embeddings=21, num_layers=1, first_kernel_size=3, **options)
    assert wavefront(*prior.lower(), *grid).rows == (1 if grid == (2, 2) else 2)
    expected = prior.sample(2, grid, method="torch")
    return prior.sample(2, grid, method="triton"), expected


@here
@pytest.mark.parametrize("launch, late", [(SUMMED, 0), (SUMMED, 2), (MULTIPLIED, None)], ids=str)
def test_blocks_that_meet_draw_the_same(make_prior, monkeypatch, launch, late) -> None:
    with in_threads(late) as blocks:
        drawn, expected = sample(make_prior, monkeypatch, "gated", launch)
    assert blocks.most == launch.members
    assert torch.equal(drawn, expected)


@here
def test_blocks_that_meet_for_rows_side_by_side_draw_the_same(make_prior, monkeypatch) -> None:
    with in_threads(late=1) as blocks:
        drawn, expected = sample(make_prior, monkeypatch, "gated", SUMMED, ROWS)
    assert blocks.most == SUMMED.members
    assert torch.equal(drawn, expected)


@here
def test_blocks_that_meet_around_an_attention_draw_the_same(make_prior, monkeypatch) -> None:
    with in_threads(late=1):
        drawn, expected = sample(make_prior, monkeypatch, "snail", SUMMED, num_blocks=1)
    assert torch.equal(drawn, expected)


@here
def test_an_attention_knows_where_its_keys_are_when_the_blocks_meet(make_prior, monkeypatch) -> None:
    from vqfast.sampling.executors import triton_attention

    noted = []
    for name in ("cells", "divided", "wait"):
        function = getattr(triton_attention, name)
        noting = lambda *given, name=name, function=function: noted.append(name) or function(*given)  # noqa: E731
        monkeypatch.setattr(triton_attention, name, noting)
    drawn, expected = sample(make_prior, monkeypatch, "snail", SUMMED._replace(members=1), num_blocks=1)
    assert torch.equal(drawn, expected)
    attentions = " ".join(noted).split("wait")
    assert attentions[0].split() == ["cells", "cells", "divided"]  # of the query, the result, all positions
    assert noted.count("wait") == 2 * 2  # once a position
    items = noted.count("cells") // 2
    assert items % noted.count("wait") == 0 and noted.count("divided") == items  # none more for any item


@here
def test_blocks_that_meet_around_strides_and_draws_of_several_codes_draw_the_same(monkeypatch) -> None:
    """Codes of mixtures, the second of which depends on the first."""
    first, second = Term(7, weight="first"), Term(7, weight="second")
    steps = (*TWO_STREAMS[:-1], Step((first,), 6), Step((second, Term(CODES, weight="seen")), 6))
    program = Program(steps, num_embeddings=5, num_quantizers=2, num_mixtures=2)
    channels = {CODES: 5, CONDITION: 2} | {number: step.channels for number, step in enumerate(steps)}
    weights = {
        term.weight: torch.randn(len(term.taps), channels[term.source], step.width)
        for step in steps
        for term in step.terms
        if term.weight is not None
    } | {step.bias: torch.randn(step.width) for step in steps if step.bias is not None}
    known, condition = torch.full((2, 2, 3, 2), -1), torch.randn(2, 2, 2, 3)
    request = Request(program, weights, Draw(0, torch.arange(2)), known, None, condition, lambda codes: codes)
    monkeypatch.setattr(executor, "members_of", lambda launch, *_: launch.members)
    with in_threads(late=0) as blocks:
        drawn = executor.Sampling(request, Tuning(SUMMED, SUMMED), executor.order_of(request)).draw()
    assert blocks.most == SUMMED.members
    assert torch.equal(drawn, plain.run(request))


@here
@pytest.mark.parametrize("grid", [(2, 2), ROWS])
def test_blocks_that_do_not_meet_are_noticed(make_prior, monkeypatch, grid) -> None:
    """The control: without the waiting, a late block's values are missing."""
    from vqfast.sampling.executors import triton_kernel

    monkeypatch.setattr(triton_kernel, "wait", lambda *_: None)
    with in_threads(late=0):
        drawn, expected = sample(make_prior, monkeypatch, "gated", SUMMED, grid)
    assert not torch.equal(drawn, expected)


@here
def test_a_block_that_never_arrives_is_reported(make_prior, monkeypatch) -> None:
    from vqfast.sampling.executors import triton_kernel

    monkeypatch.setattr(triton_kernel, "arrive", lambda *_: None)
    with pytest.raises(Exception, match=r"blocks \[0, 1, 2\] of sample waited"), in_threads(patience=2):
        sample(make_prior, monkeypatch, "gated", SUMMED)


@pytest.mark.parametrize("expression", [pytest.param("blocks or arrives or keys", marks=interpreted)])
def test_they_pass_in_the_interpreter(expression) -> None:
    assert_passes([__file__], expression)
