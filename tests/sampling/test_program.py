from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.sampling.chi_square import p_value
from tests.sampling.programs import (
    ACTIVATE,
    TWO_STREAMS,
    Programmed,
    causal_steps,
    check_parallel,
    check_sampling,
    interpret,
    reads,
)
from vqfast.priors.base import CausalPrior
from vqfast.sampling.activations import ACTIVATIONS, PAIRED
from vqfast.sampling.attention import Attention
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Phase, Program, Step, Term

ROW, POSITION, CODE = Phase
CONDITIONS = [{}, {"num_classes": 3}, {"condition_channels": 2}, {"num_classes": 3, "condition_channels": 2}]


@pytest.mark.parametrize("conditions", CONDITIONS, ids="-".join)
@torch.no_grad()
def test_program_run_by_its_definition_gives_the_models_logits(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
    conditions: dict[str, int],
) -> None:
    prior = make_prior(kind, **conditions)
    shape = (4, 5) if prior.ndim == 2 else (12,)
    codes, extra = random_codes(prior, 2, shape), conditioning(prior, 2, shape)
    grid = codes.view(2, -1, shape[-1])
    given = extra["condition"].view(2, 2, *grid.shape[1:]) if "condition" in extra else None
    condition = prior.condition_map(grid, extra.get("labels"), given)
    program, weights = prior.lower()
    logits = interpret(
        program,
        {name: weight.numpy() for name, weight in weights.items()},
        grid.numpy(),
        extra["labels"].numpy() if "labels" in extra else None,
        None if condition is None else condition.movedim(1, -1).numpy(),
    )
    expected = prior(codes, **extra).view(2, -1, *grid.shape[1:]).movedim(1, -1)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-12)


def test_lowering_keeps_no_graph_and_names_every_weight_it_uses(
    make_prior: Callable[..., CausalPrior], kind: str
) -> None:
    prior = make_prior(kind, num_classes=2, condition_channels=1)
    program, weights = prior.lower()
    named = {term.weight for step in program.steps for term in step.terms}
    named |= {name for step in program.steps for name in (step.bias, step.label_bias)}
    assert named - {None} <= set(weights)
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("conditions", CONDITIONS, ids="-".join)
def test_gated_prior_computes_lines_then_positions_then_the_code_itself(
    make_prior: Callable[..., CausalPrior], conditions: dict[str, int]
) -> None:
    program, _ = make_prior("gated", num_layers=2, **conditions).lower()
    first = [ROW, POSITION, POSITION, ROW]  # above, across, output, down
    assert program.phases() == [CODE, *first, ROW, POSITION, POSITION, POSITION, POSITION]
    assert program.num_embeddings == 5 and program.steps[-1].channels == 5


@pytest.mark.parametrize(
    ("steps", "phases"),
    [
        ([Step((reads(CODES, ((-1, 5), (-2, -3))),), 2)], [ROW]),
        ([Step((reads(CODES, ((-1, 0), (0, -1))),), 2)], [POSITION]),
        ([Step((reads(CONDITION),), 2)], [ROW]),
        ([Step((reads(CODES, ((-1, 0),)),), 2), Step((reads(0, ((0, 1),)),), 2)], [ROW, ROW]),
        ([Step((reads(CODES),), 2), Step((reads(0, ((-1, 1),)),), 2)], [CODE, ROW]),
        ([Step((reads(CODES),), 2), Step((reads(0, ((0, -1),)),), 2)], [CODE, POSITION]),
        ([Step((reads(CONDITION),), 2), Step((reads(CODES, ((0, -1),)),), 2, residual=0)], [ROW, POSITION]),
        (TWO_STREAMS, [ROW, POSITION, ROW, POSITION, ROW, POSITION, ROW, POSITION, POSITION]),
    ],
)
def test_phase_is_the_earliest_at_which_all_that_is_read_is_there(
    steps: list[AnyStep], phases: list[Phase]
) -> None:
    assert Program(tuple(steps), steps[-1].channels).phases() == phases


@pytest.mark.parametrize(
    "steps",
    [
        [Step((reads(CODES),), 2)],
        [Step((reads(CODES, ((0, 1),)),), 2)],
        [Step((reads(CODES, ((-1, 0), (0, -1), (1, -1))),), 2)],
        [Step((reads(CODES),), 2), Step((reads(0),), 2)],
        [Step((reads(CODES),), 2), Step((reads(CODES, ((0, -1),)),), 2, residual=0)],
        [Step((reads(CODES, ((0, -1),)),), 2), Step((reads(0, ((0, 1),)),), 2)],
        [Step((reads(CODES, ((-1, 0),)),), 2), Step((reads(0, ((1, 0),)),), 2)],
        [Step((reads(CODES, ((0, -1),)),), 2, stride=2), Step((reads(0, ((0, 1),)),), 2)],
        [Step((reads(CODES),), 2, stride=2), Step((reads(0),), 2)],
    ],
    ids=[
        "own code",
        "right",
        "below",
        "own code by a step",
        "own code by a residual",
        "step right",
        "step below",
        "coarse step right",
        "own code by a coarse step",
    ],
)
def test_program_that_looks_ahead_is_refused(steps: list[AnyStep]) -> None:
    with pytest.raises(ValueError, match="isn't causal"):
        Program(tuple(steps), 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": True}, TypeError, "width is True; want a positive integer"),
        ({"width": 0}, ValueError, "width is 0; want a positive integer"),
        ({"stride": 0}, ValueError, "stride is 0; want a positive integer"),
        ({"stride": 1.5}, TypeError, "stride is 1.5; want a positive integer"),
        ({"width": 3, "activation": "gate"}, ValueError, "width is 3; want an even number"),
        ({"activation": "softplus"}, ValueError, "activation is 'softplus'; want 'none', 'relu'"),
        ({"activation": None}, TypeError, "activation is None; want"),
    ],
    ids=str,
)
def test_step_names_its_wrong_argument(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Step(**{"terms": (reads(CONDITION),), "width": 2, **options})


@pytest.mark.parametrize("num_embeddings", [0, True, 2.0])
def test_program_names_a_wrong_num_embeddings(num_embeddings: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"num_embeddings is {num_embeddings}; want a positive"):
        Program((Step((reads(CONDITION),), 2),), num_embeddings)


@pytest.mark.parametrize(
    "steps",
    [
        [Step((), 2, "bias")],
        [Step((Term(CODES, (), "weight"),), 2)],
        [Step((Term(CODES, ((0, -1),)),), 2)],
        [Step((reads(CODES, ((-1, 0),)),), 2), Step((Term(0, ((-1, 0), (0, -1))),), 2)],
        [Step((Term(CONDITION),), 2)],
        [Step((reads(CONDITION, ((0, 1),)),), 2)],
    ],
    ids=["no terms", "no taps", "bare codes", "bare taps", "bare map", "map at taps"],
)
def test_program_with_a_term_that_no_executor_runs_is_refused(steps: list[AnyStep]) -> None:
    with pytest.raises(ValueError, match="has no term"):
        Program(tuple(steps), 2)


@pytest.mark.parametrize("taps", [((-1, 0),), ((0, -1),)], ids=["reads above", "known early"])
def test_a_condition_of_several_columns_is_of_sequences(taps: tuple[tuple[int, int], ...]) -> None:
    steps = [Step((reads(CODES, taps),), 2), Step((reads(CONDITION),), 2), Step((reads(0), reads(1)), 2)]
    with pytest.raises(ValueError, match="condition_stride is 2; want 1"):
        Program(tuple(steps), 2, condition_stride=2)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=causal_steps(), grid=st.sampled_from([(1, 6), (4, 2), (3, 5), (6, 1)]))
def test_executor_runs_any_causal_program(executor: str, steps: list[AnyStep], grid: tuple[int, int]) -> None:
    check_sampling(steps, executor, grid)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(steps=causal_steps(), grid=st.sampled_from([(1, 6), (4, 2), (3, 5)]))
def test_program_at_all_positions_at_once_is_its_definition(
    steps: list[AnyStep], grid: tuple[int, int]
) -> None:
    check_parallel(steps, grid)


@pytest.mark.parametrize(
    "steps",
    [
        [Step((Term(CODES, ((-1, 0),), "a"),), 4), Step((Term(0, ((0, 0), (0, 1), (0, 3)), "b"),), 3)],
        [Step((Term(CODES, ((0, -1),), "a"), Term(CONDITION, weight="b")), 3, activation="relu")],
        [Step((Term(CODES, ((0, -1), (-1, 2)), "a"), Term(CONDITION, weight="b")), 6, activation="gate")],
        [
            *(
                Step((Term(CODES, ((0, -1), (-1, 1)), f"a{n}"),), 3 + 3 * (name in PAIRED), None, None, name)
                for n, name in enumerate(ACTIVATIONS)
            ),
            Step(tuple(Term(n, weight=f"b{n}") for n in range(len(ACTIVATIONS))), 3),
        ],
        TWO_STREAMS,
        [
            Step((Term(CODES, ((-1, 1), (0, -1)), "a"), Term(CONDITION, weight="b")), 4, stride=3),
            Step((Term(0, ((0, -1), (-1, 0), (-3, 2)), "c"), Term(CODES, weight="d")), 4, stride=2),
            Step((Term(1, ((0, -1), (-1, 0)), "e"), Term(0, ((0, 0), (0, -2), (-2, 1)), "f")), 3),
        ],
    ],
    ids=["row to the right", "relu", "gate", "every activation", "two streams", "strides 3 and 2"],
)
def test_executor_runs_what_terms_and_steps_allow(executor: str, steps: list[AnyStep]) -> None:
    check_sampling(steps, executor, (3, 4))


@pytest.mark.parametrize("grid", [(1, 7), (5, 6), (6, 1)])
def test_executor_runs_strides_on_any_grid(executor: str, grid: tuple[int, int]) -> None:
    check_sampling(TWO_STREAMS, executor, grid)


@pytest.mark.slow
def test_program_with_strides_has_its_distribution_and_no_other(executor: str) -> None:
    prior, num, temperature = Programmed(TWO_STREAMS), 20_000, 3.0
    condition = torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 2, 2, 2)
    given = condition.expand(num, -1, -1, -1)
    drawn = prior.sample(num, (2, 2), condition=given, temperature=temperature, method=executor)
    counts = torch.bincount(drawn.flatten(1) @ torch.tensor([27, 9, 3, 1]), minlength=81).numpy()
    grids = torch.tensor(list(product(range(3), repeat=4))).view(81, 2, 2)
    logits = prior.grid_logits(grids, None, condition.expand(81, -1, -1, -1))
    for divisor, expected in ((temperature, True), (1.1 * temperature, False)):
        logs = (logits / divisor).log_softmax(1).gather(1, grids[:, None]).flatten(1).sum(1)
        assert (p_value(counts, logs.exp().numpy()) > 1e-3) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_executor_activates_to_rounding(executor: str, activation: str, dtype: torch.dtype) -> None:
    """Greedy draws between the activated value and a bound, just below and just above scipy's value."""
    x = torch.cat([torch.linspace(-12, 12, 40), torch.logspace(-7, 3, 12), -torch.logspace(-7, 3, 12)]).to(
        dtype
    )
    sums = torch.stack([x, x.flip(0).roll(3)], dim=1)[:, : 1 + (activation in PAIRED)]
    value = Step((Term(CODES, ((0, -1),), "x"),), sums.shape[1], activation=activation)
    logits = Step((Term(0, weight="first"), Term(CODES, ((0, -1),), "bound")), 64)
    prior = Programmed([value, logits], 0, 64).to(dtype)
    want = torch.from_numpy(ACTIVATE[activation](*sums.double().numpy().T))
    error = 8 * torch.finfo(dtype).eps * want.abs().clamp(min=1)
    known = torch.stack([torch.arange(64), torch.full((64,), -1)], dim=1).view(64, 1, 2)
    for sign, code in ((-1, 0), (1, 1)):
        bound = torch.full((1, 64, 64), -1e30, dtype=dtype)
        bound[0, :, 0], bound[0, :, 1] = 0, (want + sign * error).to(dtype)
        first = torch.zeros(1, 1, 64, dtype=dtype)
        first[..., 0] = 1
        prior.weights = {"x": sums[None], "first": first, "bound": bound}
        drawn = prior.sample(64, (1, 2), known=known, temperature=0, method=executor)
        assert (drawn[:, 0, 1] == code).all(), (sums[drawn[:, 0, 1] != code], sign)


@pytest.mark.parametrize(
    "last",
    [
        Step((reads(0),), 3, residual=0),
        Step((reads(0),), 3, residual=1),
        Step((reads(0),), 3, residual=CONDITION),
        Step((reads(0), Term(0)), 3),
    ],
    ids=["other channels", "its own", "the map", "bare term"],
)
def test_what_a_step_adds_has_its_channels(last: Step) -> None:
    with pytest.raises(ValueError, match="step 1 adds step"):
        Program((Step((reads(CODES, ((0, -1),)),), 4), last), 3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step((reads(CODES, ((0, -1),)),), 3, stride=2)], "the last steps have stride 2; want 1"),
        (
            [Step((reads(CONDITION),), 3, stride=2), Step((reads(CODES, ((0, -1),)), Term(0)), 3)],
            "step 1 adds step 0; want an earlier one of 3 channels and stride 1",
        ),
        (
            [
                Step((reads(CONDITION),), 3, stride=4),
                Step((reads(0, ((0, -2), (0, -3))),), 3, stride=2),
                Step((reads(1),), 3),
            ],
            r"step 1 reads step 0 at \(\(0, -2\), \(0, -3\)\); want multiples of 2: elsewhere it is zero",
        ),
        (
            [Step((reads(CONDITION),), 3, stride=2), Attention(0, 0, 0, 3), Step((reads(1),), 3)],
            "step 1 is an attention of steps with strides; want stride 1",
        ),
    ],
    ids=["logits", "sum", "between", "attention"],
)
def test_strides_that_do_not_fit_are_refused(steps: list[AnyStep], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Program(tuple(steps), 3)
