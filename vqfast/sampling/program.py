"""The sampling program: a causal network as a list of steps that any executor can run.

A step adds up products of earlier steps' values with matrices, activates, and may add a residual. Values live
on the grid of codes, channels last, and are zero outside it. Plain data: steps name their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from vqfast.checks import check_choice
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.sampling.activations import ACTIVATIONS, channels

CODES = -1  # the codes as one-hot vectors: a product with them is a row of the matrix
CONDITION = -2  # the conditioning map, known everywhere from the start

_BLOCK = 256

Offset = tuple[int, int]  # (dy, dx) from the position that is computed


class Phase(IntEnum):
    """When a value can be computed."""

    ROW = 0  # from rows above alone: a whole row at once
    POSITION = 1  # from what stands before the position: position by position
    CODE = 2  # from the position's own code: after the draw


@dataclass(frozen=True)
class Term:
    """``sum over taps of value[position + tap] @ weight[tap]``.

    ``source`` is a step's number, ``CODES`` or ``CONDITION`` (its own position only); ``weight`` names a
    ``(taps, in, out)`` tensor, or is ``None`` to add a step's value at the own position itself.
    """

    source: int
    taps: tuple[Offset, ...] = ((0, 0),)
    weight: str | None = None


@dataclass(frozen=True)
class Step:
    """``activation(sum of terms + bias + label_bias[label]) + value of residual``.

    ``width`` counts the sum's channels; ``gate`` (``tanh(a) * sigmoid(b)``), ``glu`` (``a * sigmoid(b)``) and
    ``product`` (``a * b``) halve them. ``bias`` names a ``(width,)`` tensor, ``label_bias`` a
    ``(num_classes, width)`` one.
    """

    terms: tuple[Term, ...]
    width: int
    bias: str | None = None
    label_bias: str | None = None
    activation: str = "none"  # of ACTIVATIONS
    residual: int | None = None

    @property
    def channels(self) -> int:
        """Channels of the step's value."""
        return channels(self.width, self.activation)


@dataclass(frozen=True)
class Program:
    """Steps in order; the last one's value is the logits.

    Raises:
        ValueError: the logits see their own or a later position, or a term isn't as ``Term`` says.
    """

    steps: tuple[Step, ...]
    num_embeddings: int

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps):
            for term in step.terms:
                own = term.taps == ((0, 0),)
                bare = term.weight is None and (term.source < 0 or not own)
                if not CONDITION <= term.source < number:
                    raise ValueError(f"step {number} reads step {term.source}, which isn't before it")
                if not term.taps or bare or (term.source == CONDITION and not own):
                    raise ValueError(f"step {number} has no term like {term}")
            check_choice(f"activation of step {number}", step.activation, ACTIVATIONS)
            if not step.terms:
                raise ValueError(f"step {number} has no terms")
        if self.phases()[-1] == Phase.CODE:
            raise ValueError("the program isn't causal: its logits see the code they are for")

    def phases(self) -> list[Phase]:
        """When each step runs."""
        phases: list[Phase] = []
        for step in self.steps:
            needs = [available(t.source, tap, phases) for t in step.terms for tap in t.taps]
            if step.residual is not None:
                needs.append(available(step.residual, (0, 0), phases))
            phases.append(max(needs))
        return phases

    def reach(self, source: int) -> tuple[int, int, int]:
        """``(rows, left, right)``: the rows of a value that are read, its own too, and columns beside it."""
        taps = [
            tap for step in self.steps for term in step.terms if term.source == source for tap in term.taps
        ]
        dys, dxs = zip((0, 0), *taps, strict=True)
        return 1 - min(dys), -min(dxs), max(dxs)

    def block(self, height: int, width: int) -> int:
        """How many columns an executor keeps at a time: a whole row, but of one long row only some."""
        ahead = any(dx > 0 for step in self.steps for term in step.terms for _, dx in term.taps)
        return width if height > 1 or ahead else min(width, _BLOCK)

    def values(self, height: int, width: int) -> int:
        """How many values an executor keeps for a sample: each step's last rows, and its sums of one."""
        block, total = self.block(height, width), 0
        for number, step in enumerate(self.steps):
            rows, left, right = self.reach(number)
            total += rows * (left + block + right) * step.channels + block * step.width
        return total


def available(source: int, tap: Offset, phases: list[Phase]) -> Phase:
    """From when on the value of ``source`` at ``tap`` can be read.

    Raises:
        ValueError: never, since it lies ahead in raster order.
    """
    dy, dx = tap
    if source == CONDITION or dy < 0:
        return Phase.ROW
    own = Phase.CODE if source == CODES else phases[source]
    if own == Phase.ROW and dy == 0:
        return Phase.ROW
    if dy > 0 or dx > 0:
        raise ValueError(f"the program isn't causal: step {len(phases)} reads step {source} at {tap}")
    return own if dx == 0 else Phase.POSITION


class ProgramBuilder:
    """Collects steps and their weights."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.weights: dict[str, Tensor] = {}

    def keep(self, tensor: Tensor | None) -> str | None:
        """Names a tensor."""
        if tensor is None:
            return None
        name = f"w{len(self.weights)}"
        self.weights[name] = tensor.detach()
        return name

    def conv(self, source: int, module: MaskedConv2d) -> Term:
        """The term of a masked convolution, without its bias."""
        return Term(source, tuple(module.offsets()), self.keep(module.matrix()))

    def dense(self, source: int, weight: Tensor) -> Term:
        """The term of a 1x1 convolution or an embedding, ``weight (out, in, ...)`` or its transpose."""
        return Term(source, weight=self.keep(weight.flatten(1).T.unsqueeze(0)))

    def add(
        self,
        *terms: Term,
        width: int,
        bias: Tensor | None = None,
        label_bias: Tensor | None = None,
        activation: str = "none",
        residual: int | None = None,
    ) -> int:
        """Appends a step and returns its number."""
        names = self.keep(bias), self.keep(label_bias)
        self.steps.append(Step(terms, width, *names, activation, residual))
        return len(self.steps) - 1

    def pointwise(
        self, source: int, conv: MaskedConv2d, activation: str = "none", residual: int | None = None
    ) -> int:
        """Appends a 1x1 convolution."""
        term = self.dense(source, conv.weight)
        return self.add(
            term, width=len(conv.weight), bias=conv.bias, activation=activation, residual=residual
        )

    def program(self, num_embeddings: int) -> tuple[Program, dict[str, Tensor]]:
        """What was collected."""
        return Program(tuple(self.steps), num_embeddings), self.weights
