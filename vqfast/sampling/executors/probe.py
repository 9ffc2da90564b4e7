"""Draws of a small batch by every tuning of the Triton executor, compared with the torch executor's."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from vqfast.sampling.attention import Attention
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import torch as plain
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Offset, Program, Step, Term
from vqfast.sampling.request import Request

_SHAPE = (5, 2, 3)  # (B, H, W)
_NUM_EMBEDDINGS, _CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 20, 40, 24, 2
_ABOVE = tuple((dy, dx) for dy in (-3, -2, -1) for dx in range(-3, 4))
_AROUND = tuple((dy, dx) for dy in (-1, 0) for dx in (-1, 0, 1))


class _Steps:
    """Collects steps with random weights, large enough for codes, labels and map to matter."""

    def __init__(self) -> None:
        self.steps: list[AnyStep] = []
        self.weights: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *size: int, bound: float) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = bound * (2 * torch.rand(size, generator=self.generator) - 1)
        return name

    def add(
        self,
        width: int,
        *reads: tuple[int, tuple[Offset, ...]],
        bare: int | None = None,
        by_label: bool = False,
        activation: str = "none",
        residual: int | None = None,
    ) -> int:
        """Appends a step that reads sources at taps, and returns its number."""
        inputs = {CODES: _NUM_EMBEDDINGS, CONDITION: 1} | {n: s.channels for n, s in enumerate(self.steps)}
        terms = [Term(bare)] if bare is not None else []
        for source, taps in reads:
            fan_in = 1 if source == CODES else inputs[source] * len(taps)
            weight = self.random(len(taps), inputs[source], width, bound=2 * fan_in**-0.5)
            terms.append(Term(source, taps, weight))
        labels = self.random(_NUM_CLASSES, width, bound=2) if by_label else None
        bias = self.random(width, bound=0.2)
        self.steps.append(Step(tuple(terms), width, bias, labels, activation, residual))
        return len(self.steps) - 1


def probe_request(device: torch.device, dtype: torch.dtype, attends: bool = False) -> Request:
    """Five samples of two gated layers with labels and a map: what a program can do, in every phase.

    With ``attends`` there is also an attention before the head.
    """
    own: tuple[Offset, ...] = ((0, 0),)
    double, made = 2 * _CHANNELS, _Steps()
    vertical = horizontal = made.add(_CHANNELS, (CODES, own))
    for taps, left, residual in ((_ABOVE, (-3, -2, -1), False), (_AROUND, (-1, 0), True)):
        above = made.add(double, (vertical, taps))
        across = made.add(
            double,
            (horizontal, tuple((0, dx) for dx in left)),
            (above, own),
            (CONDITION, own),
            by_label=True,
            activation="gate",
        )
        vertical = made.add(double, (CONDITION, own), bare=above, by_label=True, activation="gate")
        horizontal = made.add(_CHANNELS, (across, own), residual=horizontal if residual else None)
    if attends:
        made.steps.append(Attention(horizontal, horizontal, vertical, _CHANNELS, heads=4, own=True))
        horizontal = len(made.steps) - 1
    head = made.add(_HEAD_CHANNELS, (horizontal, own), activation="relu")
    made.add(_NUM_EMBEDDINGS, (head, own))
    numbers = torch.arange(_SHAPE[0], device=device)
    condition = numbers.to(dtype).sin().view(-1, 1, 1, 1).expand(_SHAPE[0], 1, *_SHAPE[1:])

    def no_logits(codes: Tensor) -> Tensor:
        raise NotImplementedError("the probe is a program; no model stands behind it")

    return Request(
        Program(tuple(made.steps), _NUM_EMBEDDINGS),
        {name: weight.to(device, dtype) for name, weight in made.weights.items()},
        Draw(0, numbers),
        known=torch.full((*_SHAPE, 1), -1, device=device),
        labels=numbers % _NUM_CLASSES,
        condition=condition,
        logits=no_logits,
    )


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError if more than 7 of 30 codes differ in float16 or bfloat16, or any in other dtypes.

    One wrong code makes most of the later ones differ. ``reference`` isn't run: it draws from a model.
    """
    allowed = 0 if dtype in (torch.float32, torch.float64) else 7
    for request in (probe_request(device, dtype), probe_request(device, dtype, attends=True)):
        expected = plain.run(request)
        for tuning in module.tunings_of(request.weight).values():
            differ = int((module.Sampling(request, tuning).draw() != expected).sum())
            if differ > allowed:
                raise AssertionError(f"{differ} of {expected.numel()} codes are wrong with {tuning}")
