"""Programs with random weights, what they compute by their definition, and random causal programs."""

from __future__ import annotations

import math

import numpy as np
import scipy.special
import torch
from hypothesis import strategies as st
from torch import Tensor

from vqfast.priors.base import CausalPrior
from vqfast.sampling import parallel
from vqfast.sampling.activations import ACTIVATIONS, PAIRED, channels
from vqfast.sampling.attention import Attention
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Program, Step, Term

ACTIVATE = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "gate": lambda a, b: np.tanh(a) * scipy.special.expit(b),
    "glu": lambda a, b: a * scipy.special.expit(b),
    "product": lambda a, b: a * b,
    "norm": lambda a, b: a / np.sqrt(np.maximum(b, 1)),
}


# The rows above, and those with what is on the left: finer, coarser and finer again, as in PixelCNN++.
TWO_STREAMS = [
    Step((Term(CODES, ((-1, -1), (-1, 0), (-1, 1)), "a"),), 4, activation="elu"),
    Step((Term(CODES, ((-1, 0), (0, -1)), "b"), Term(0, weight="c")), 4, activation="elu"),
    Step((Term(0, ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1)), "d"),), 4, "e", stride=2),
    Step((Term(1, ((-1, -1), (-1, 0), (0, -1), (0, 0)), "f"), Term(CONDITION, weight="g")), 4, stride=2),
    Step((Term(2, ((-2, 2), (0, 0), (0, 2)), "h"),), 8, "i", activation="gate", residual=2, stride=2),
    Step((Term(3, ((-2, 0), (0, -2), (0, 0)), "j"), Term(4), Term(4, weight="k")), 4, stride=2),
    Step((Term(4, ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1)), "l"), Term(0)), 4, "m"),
    Step((Term(5, ((-1, -1), (-1, 0), (0, -1), (0, 0)), "n"), Term(6, weight="o")), 4, residual=1),
    Step((Term(7, weight="p"),), 3),
]


def attend(step: Attention, values: dict[int, np.ndarray], position: int) -> np.ndarray:
    """The value ``(B, width)`` of an attention at a position, given earlier steps' ``(B, H, W, C)``."""
    count = position + step.own
    query, keys, means = (
        values[source].reshape(len(values[source]), -1, step.heads, values[source].shape[3] // step.heads)
        for source in step.sources
    )
    if count == 0:
        return np.zeros((len(query), step.width))
    scores = step.scale * np.einsum("bhc,bnhc->bhn", query[:, position], keys[:, :count])
    return np.einsum("bhn,bnhc->bhc", scipy.special.softmax(scores, axis=2), means[:, :count]).reshape(
        len(query), -1
    )


def interpret(program: Program, weights: dict[str, np.ndarray], codes, labels, condition) -> np.ndarray:
    """Logits ``(B, H, W, K)`` of given codes, position by position, as ``Step`` is defined.

    With several codes a position, codes ``(B, H, W, S)`` give logits ``(B, H, W, S, K)``.
    """
    batch, height, width, *several = codes.shape
    by_code = np.moveaxis(codes.reshape(batch, height, width, -1), 3, 0)
    one_hot = [np.eye(program.num_embeddings)[each] for each in by_code]
    values = dict(zip(program.codes, one_hot, strict=True)) | {CONDITION: condition}
    for number, step in enumerate(program.steps):
        result = np.zeros((batch, height, width, step.channels))
        for y, x in np.ndindex(height, width):
            if y % step.stride or x % step.stride:
                continue
            if isinstance(step, Attention):
                result[:, y, x] = attend(step, values, y * width + x)
                continue
            total = np.zeros((batch, step.width))
            for term in step.terms:
                for tap, (dy, dx) in enumerate(term.taps):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        value = values[term.source][:, y + dy, x + dx]
                        total += value if term.weight is None else value @ weights[term.weight][tap]
            if step.bias is not None:
                total += weights[step.bias]
            if step.label_bias is not None:
                total += weights[step.label_bias][labels]
            halves = np.split(total, 2, axis=1) if step.activation in PAIRED else [total]
            total = ACTIVATE[step.activation](*halves)
            if step.residual is not None:
                total = total + values[step.residual][:, y, x]
            result[:, y, x] = total
        values[number] = result
    last = np.stack([values[number] for number in list(values)[-program.num_quantizers :]], axis=3)
    return last if several else last[:, :, :, 0]


def reads(source: int, taps: tuple[tuple[int, int], ...] = ((0, 0),)) -> Term:
    return Term(source, taps, "weight")


class Programmed(CausalPrior):
    """A prior that is a program with random weights; its logits are ``interpret``'s."""

    def __init__(self, steps: list[AnyStep], condition_channels: int = 2, num_embeddings: int = 3) -> None:
        super().__init__(num_embeddings, None, condition_channels)
        self.program = Program(tuple(steps), num_embeddings)
        self.device_of = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        generator = torch.Generator().manual_seed(0)
        channels = {CODES: num_embeddings, CONDITION: condition_channels} | {
            n: s.channels for n, s in enumerate(steps)
        }
        self.weights = {}
        for step in steps:
            for term in step.terms:
                if term.weight is not None:
                    size = len(term.taps), channels[term.source], step.width
                    self.weights[term.weight] = torch.randn(size, generator=generator, dtype=torch.float64)
            if step.bias is not None:
                self.weights[step.bias] = torch.randn(step.width, generator=generator, dtype=torch.float64)

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        return self.program, self.weights

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor) -> Tensor:
        weights = {name: weight.numpy() for name, weight in self.weights.items()}
        logits = interpret(self.program, weights, codes.numpy(), None, condition.movedim(1, -1).numpy())
        return torch.from_numpy(logits).movedim(-1, 1)


@st.composite
def attentions(draw: st.DrawFn, steps: list[AnyStep]) -> Attention:
    """An attention of some of the steps, which all have 2 or 4 channels."""
    query, value = draw(st.sampled_from(range(len(steps)))), draw(st.sampled_from(range(len(steps))))
    alike = [n for n, step in enumerate(steps) if step.channels == steps[query].channels]
    heads, own = draw(st.sampled_from([1, 2])), draw(st.booleans())
    return Attention(query, draw(st.sampled_from(alike)), value, steps[value].channels, heads, 0.5, own)


@st.composite
def causal_steps(draw: st.DrawFn, plain: bool = False) -> list[AnyStep]:
    """A few steps that read codes, the map and each other; the last one reads earlier positions only.

    Plain ones are no attentions and have no strides.
    """
    above = [(dy, dx) for dy in (-3, -2, -1) for dx in (-2, -1, 0, 1, 2)]
    past = [*above, (0, -3), (0, -2), (0, -1)]
    strides = st.sampled_from([1] if plain or draw(st.booleans()) else [1, 2, 2, 3, 4])
    steps: list[AnyStep] = []
    last = draw(st.integers(0, 5))
    for number in range(last + 1):
        whole = all(step.stride == 1 for step in steps)
        if 0 < number < last and whole and not plain and draw(st.booleans()):
            steps.append(draw(attentions(steps)))
            continue
        stride = 1 if number == last else draw(strides)
        terms = []
        for source in draw(st.lists(st.sampled_from([CODES, *range(number)]), min_size=1, max_size=3)):
            common = math.gcd(stride, steps[source].stride if source >= 0 else 1)
            offsets = st.sampled_from(past if number == last else [*past, (0, 0)]).map(
                lambda tap, by=common: (tap[0] * by, tap[1] * by)
            )
            taps = tuple(draw(st.lists(offsets, min_size=1, max_size=5, unique=True)))
            terms.append(Term(source, taps, f"weight{number}.{len(terms)}"))
        if draw(st.booleans()):
            terms.append(Term(CONDITION, weight=f"condition{number}"))
        activation = "none" if number == last else draw(st.sampled_from(ACTIVATIONS))
        width = 3 if number == last else 4
        fitting = channels(width, activation)
        alike = [
            n
            for n, step in enumerate(steps)
            if (step.channels, step.stride) == (fitting, stride) and number < last
        ]
        residual = draw(st.sampled_from([None, *alike]))
        bias = draw(st.sampled_from([None, f"bias{number}"]))
        steps.append(Step(tuple(terms), width, bias, None, activation, residual, stride))
    return steps


def check_sampling(steps: list[AnyStep], executor: str, grid: tuple[int, int]) -> None:
    prior = Programmed(steps)
    condition = torch.linspace(-1, 1, 6 * grid[0] * grid[1], dtype=torch.float64).view(3, 2, *grid)
    expected = prior.sample(3, grid, condition=condition, method="reference")
    assert torch.equal(prior.sample(3, grid, condition=condition, method=executor), expected)


def check_parallel(steps: list[AnyStep], grid: tuple[int, int]) -> None:
    prior = Programmed(steps)
    codes = torch.arange(2 * grid[0] * grid[1]).view(2, *grid) * 5 % 7 % 3
    condition = torch.linspace(-1, 1, 4 * grid[0] * grid[1], dtype=torch.float64).view(2, 2, *grid)
    logits = parallel.logits(*prior.lower(), codes, condition=condition)
    torch.testing.assert_close(logits, prior.grid_logits(codes, None, condition), rtol=0, atol=1e-12)
