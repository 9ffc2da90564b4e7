"""Programs and priors whose positions have several codes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.priors.small import BOTH
from tests.sampling.chi_square import p_value
from tests.sampling.test_program import interpret
from vqfast import PixelCNN
from vqfast.ops import registry
from vqfast.priors.base import CausalPrior
from vqfast.sampling import CODES, CONDITION, Phase, Program, Step, Term, codes_of, parallel
from vqfast.sampling.activations import ACTIVATIONS, channels
from vqfast.sampling.draw import Draw

K = 3


class Programmed(CausalPrior):
    """A prior that is a program with random weights; its logits are ``interpret``'s."""

    def __init__(self, steps: list[Step], num_quantizers: int) -> None:
        super().__init__(K, None, condition_channels=2)
        self.num_quantizers = num_quantizers
        self.program = Program(tuple(steps), K, num_quantizers)
        self.device_of = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        generator = torch.Generator().manual_seed(0)
        inputs = dict.fromkeys(self.program.codes, K) | {CONDITION: 2}
        inputs |= {number: step.channels for number, step in enumerate(steps)}
        self.weights = {
            term.weight: torch.randn(
                len(term.taps), inputs[term.source], step.width, generator=generator, dtype=torch.float64
            )
            for step in steps
            for term in step.terms
            if term.weight is not None
        }

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        return self.program, self.weights

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor) -> Tensor:
        weights = {name: weight.numpy() for name, weight in self.weights.items()}
        logits = interpret(self.program, weights, codes.numpy(), None, condition.movedim(1, -1).numpy())
        return torch.from_numpy(logits).movedim(-1, 1)


@st.composite
def causal_programs(draw: st.DrawFn) -> tuple[list[Step], int]:
    """Steps that read the codes of earlier positions and of their own one; then the logits of each code."""
    past = [(dy, dx) for dy in (-2, -1) for dx in (-1, 0, 1)] + [(0, -2), (0, -1)]
    num_quantizers = draw(st.integers(1, 3))
    hidden = draw(st.integers(1, 4))
    steps: list[Step] = []
    own_codes: list[int] = []  # how many of the position's own codes each step sees
    for number in range(hidden + num_quantizers):
        allowed = max(0, number - hidden) if number >= hidden else num_quantizers
        sources = [*range(min(number, hidden)), *map(codes_of, range(num_quantizers))]
        terms, sees = [], 0
        for source in draw(st.lists(st.sampled_from(sources), min_size=1, max_size=3)):
            own = own_codes[source] if source >= 0 else CODES - source + 1
            offsets = [*past, (0, 0)] if own <= allowed else past
            taps = tuple(draw(st.lists(st.sampled_from(offsets), min_size=1, max_size=4, unique=True)))
            sees = max(sees, own if (0, 0) in taps else 0)
            terms.append(Term(source, taps, f"weight{number}.{len(terms)}"))
        if draw(st.booleans()):
            terms.append(Term(CONDITION, weight=f"condition{number}"))
        logits = number >= hidden
        activation = "none" if logits else draw(st.sampled_from(ACTIVATIONS))
        width = K if logits else 4
        alike = [n for n, step in enumerate(steps) if step.channels == channels(width, activation)]
        residual = None if logits else draw(st.sampled_from([None, *alike]))
        own_codes.append(max(sees, 0 if residual is None else own_codes[residual]))
        steps.append(Step(tuple(terms), width, None, None, activation, residual))
    return steps, num_quantizers


def inputs_of(num: int, grid: tuple[int, int], num_quantizers: int) -> tuple[Tensor, Tensor]:
    """Codes, and a map of two channels."""
    codes = torch.arange(num * grid[0] * grid[1] * num_quantizers).view(num, *grid, num_quantizers)
    condition = torch.linspace(-1, 1, num * 2 * grid[0] * grid[1], dtype=torch.float64)
    return codes * 5 % 7 % K, condition.view(num, 2, *grid)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(made=causal_programs(), grid=st.sampled_from([(1, 6), (4, 2), (3, 4), (6, 1)]))
def test_executor_runs_any_causal_program(
    executor: str, made: tuple[list[Step], int], grid: tuple[int, int]
) -> None:
    prior = Programmed(*made)
    codes, condition = inputs_of(3, grid, made[1])
    expected = prior.sample(3, grid, condition=condition, method="reference")
    assert torch.equal(prior.sample(3, grid, condition=condition, method=executor), expected)
    known = codes.where(codes % 2 == 0, -1)
    expected = prior.sample(3, grid, condition=condition, known=known, method="reference")
    assert torch.equal(prior.sample(3, grid, condition=condition, known=known, method=executor), expected)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(made=causal_programs(), grid=st.sampled_from([(1, 6), (4, 2), (3, 4)]))
def test_program_at_all_positions_at_once_is_its_definition(
    made: tuple[list[Step], int], grid: tuple[int, int]
) -> None:
    prior = Programmed(*made)
    codes, condition = inputs_of(2, grid, made[1])
    logits = parallel.logits(*prior.lower(), codes, condition=condition)
    assert logits.shape == (2, K, *grid, made[1])
    torch.testing.assert_close(logits, prior.grid_logits(codes, None, condition), rtol=0, atol=1e-12)


def test_phases_count_the_codes_of_the_position() -> None:
    own = [Term(codes_of(s), weight="w") for s in range(2)]
    above = Term(codes_of(1), ((-1, 0), (0, -1)), "w")
    steps = (Step((above, own[0]), 4), Step((own[1],), 4), Step((above,), K), Step((Term(0, weight="w"),), K))
    program = Program(steps, K, num_quantizers=2)
    assert program.phases() == [Phase.CODE, Phase.CODE + 1, Phase.POSITION, Phase.CODE]
    assert list(program.codes) == [codes_of(0), codes_of(1)]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step((Term(CODES, weight="w"),), K), Step((Term(CODES, weight="w"),), K)], "isn't causal"),
        (
            [Step((Term(CONDITION, weight="w"),), K), Step((Term(codes_of(1), weight="w"),), K)],
            "isn't causal",
        ),
        ([Step((Term(CONDITION, weight="w"),), K), Step((Term(0),), K)], "step 1 reads step 0"),
        ([Step((Term(CONDITION, weight="w"),), K)], "steps has 1; want at least 2"),
        ([Step((Term(codes_of(2), ((0, -1),), "w"),), K)] * 2, f"reads step {codes_of(2)}"),
    ],
    ids=["first code", "own code", "logits", "too few steps", "no such code"],
)
def test_program_of_two_codes_refuses(steps: list[Step], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Program(tuple(steps), K, num_quantizers=2)


def small(**options: Any) -> PixelCNN:
    torch.manual_seed(0)
    sizes = {"channels": 4, "num_layers": 2, "first_kernel_size": 3, "head_channels": 8}
    prior = PixelCNN(5, **{"num_quantizers": 3, **sizes, **options}).double().eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1 if parameter.ndim == 1 else 3)
    return prior


@torch.no_grad()
def test_logits_depend_on_earlier_codes_alone() -> None:
    prior = small()
    codes = torch.randint(5, (1, 3, 3, 3))
    logits = prior(codes)
    assert logits.shape == (1, 5, 3, 3, 3)
    for number, place in enumerate(np.ndindex(3, 3, 3)):
        other = codes.clone()
        other[0][place] = (other[0][place] + 1) % 5
        changed = (prior(other) != logits).any(1).flatten()
        assert not changed[: number + 1].any()
        if place[2] < 2:
            assert changed[number + 1]  # the position's next code


@pytest.mark.parametrize("conditions", [{}, BOTH], ids=["alone", "conditioned"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "top_k": 2}, {"top_p": 0.5, "seed": 2**63}, {"temperature": 0}],
    ids=str,
)
def test_executor_draws_what_the_naive_sampler_draws(
    executor: str, options: dict[str, Any], conditions: dict[str, int]
) -> None:
    prior = small(**conditions)
    if conditions:
        options = options | {"labels": torch.arange(4) % 3}
        options["condition"] = torch.linspace(-1, 1, 4 * 2 * 6, dtype=torch.float64).view(4, 2, 2, 3)
    known = torch.arange(4 * 18).view(4, 2, 3, 3) % 8 - 1
    for given_codes in (None, known.where(known < 2, -1)):
        expected = prior.sample(4, (2, 3), known=given_codes, method="reference", **options)
        drawn = prior.sample(4, (2, 3), known=given_codes, method=executor, batch_size=3, **options)
        assert torch.equal(drawn, expected) and drawn.shape == (4, 2, 3, 3)
        if given_codes is not None:
            assert torch.equal(drawn[given_codes >= 0], given_codes[given_codes >= 0])


def test_one_code_with_an_axis_is_drawn_as_one_without(executor: str) -> None:
    prior = small(num_quantizers=1)
    calls: list[int] = []
    drawn = prior.sample(2, (2, 3), method=executor, progress=calls.append)
    assert drawn.shape == (2, 2, 3, 1) and sum(calls) == 12
    assert torch.equal(drawn, prior.sample(2, (2, 3), method="reference"))


@pytest.mark.parametrize("method", registry.TABLE["sampler"])
@torch.no_grad()
def test_samples_have_the_models_distribution_and_no_other(method: str) -> None:
    torch.manual_seed(0)
    sizes = {"channels": 4, "num_layers": 1, "first_kernel_size": 3, "head_channels": 8}
    prior = PixelCNN(3, num_quantizers=2, **sizes).double().eval()
    for parameter in prior.parameters():
        parameter.mul_(3)
    num = 4000 if method == "triton" else 40_000
    drawn = prior.sample(num, (1, 2), temperature=0.8, method=method, batch_size=num, seed=3)
    counts = torch.bincount(drawn.flatten(1) @ torch.tensor([27, 9, 3, 1]), minlength=81).numpy()
    grids = torch.tensor(list(product(range(3), repeat=4))).view(81, 1, 2, 2)

    def distribution(temperature: float) -> np.ndarray:
        log_p = (prior(grids) / temperature).log_softmax(1).gather(1, grids.unsqueeze(1))
        return log_p.flatten(1).sum(1).exp().numpy()

    assert p_value(counts, distribution(0.8)) > 1e-3
    assert p_value(counts, distribution(1.1)) < 1e-3


@torch.no_grad()
def test_bits_are_the_mean_over_all_codes() -> None:
    prior = small()
    codes = torch.randint(5, (2, 2, 3, 3))
    log_p = prior(codes).log_softmax(1).gather(1, codes.unsqueeze(1)).flatten(1) / np.log(2)
    torch.testing.assert_close(prior.bits_per_code(codes), -log_p.mean(1))


def test_noise_of_a_code_is_that_of_its_number() -> None:
    draw = Draw(1, torch.arange(2))
    prior = small(num_layers=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    drawn = prior.sample(2, (2, 2), seed=1)
    assert torch.equal(drawn.flatten(1), draw.noise(0, 12, 5).argmax(2))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 4), "want \\(B, 2 sizes, 3\\)"), ((2, 3, 4, 2), "want \\(B, 2 sizes, 3\\)")],
)
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="known has shape"):
        small().sample(shape[0], shape[1:3], known=torch.zeros(shape, dtype=torch.int64))
