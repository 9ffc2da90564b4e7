"""The sampling program: a causal network as a list of steps that any executor can run.

A step adds up products of earlier steps' values with matrices, applies an activation, and may add a
residual; or it is an attention over the values of earlier positions. Values live on the grid of codes,
channels last, and are zero outside of it. A step may have a stride: its value is computed at every s-th row
and column, and zero at all other positions. A program is plain data: its steps name their weights, which are
kept beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from vqfast.checks import check_choice, check_integer
from vqfast.sampling.activations import ACTIVATIONS, PAIRED, channels
from vqfast.sampling.attention import Attention

CONDITION = -1  # the conditioning map, known at every position from the start
CODES = -2  # the codes as one-hot vectors: their product with a matrix is a lookup; see ``codes_of``

_BLOCK_COLUMNS = 256

Offset = tuple[int, int]  # (dy, dx), from the position that is computed to the one that is read


class Phase(IntEnum):
    """When a step's value at a position can be computed.

    >>> max(Phase.ROW, Phase.POSITION)  # a step waits for the last of its terms
    <Phase.POSITION: 1>
    """

    ROW = 0  # when the position's row starts, for all of the row: it depends on rows above alone
    POSITION = 1  # when the codes before the position are drawn
    CODE = 2  # when the position's own code is drawn; of several codes, CODE + s when code s is drawn


def codes_of(number: int) -> int:
    """The source that is code ``number`` of each position, for positions that have several codes.

    >>> codes_of(0) == CODES
    True
    """
    return CODES - number


@dataclass(frozen=True)
class Term:
    """A summand of a step: the sum over ``taps`` of ``value[position + tap] @ weight[tap]``.

    Args:
        source: whose value is read: the number of an earlier step, ``CODES`` or ``CONDITION``; of positions
            that have several codes ``codes_of(s)`` is code ``s``.
        taps: offsets ``(dy, dx)`` at which it is read, in positions of the grid of codes: multiples of what
            divides both strides. Of ``CONDITION`` only ``(0, 0)``.
        weight: the name of a ``(taps, in, out)`` tensor. ``None`` adds a step's value as it is, read at
            ``(0, 0)`` only, and with the stride of the step that adds it.

    >>> Term(CODES, taps=((-1, 0), (0, -1)), weight="above and left")
    Term(source=-2, taps=((-1, 0), (0, -1)), weight='above and left')
    """

    source: int
    taps: tuple[Offset, ...] = ((0, 0),)
    weight: str | None = None


@dataclass(frozen=True)
class Step:
    """``activation(sum of terms + bias + label_bias[label]) + value of the step residual``.

    Args:
        terms: what is summed, at least one term.
        width: channels of the sum. The activations ``gate`` (``tanh(a) * sigmoid(b)``), ``glu``
            (``a * sigmoid(b)``), ``product`` (``a * b``) and ``norm`` (``a / sqrt(max(b, 1))``) halve them: a
            is the first half, b the second.
        bias: the name of a ``(width,)`` tensor, or ``None``.
        label_bias: the name of a ``(num_classes, width)`` tensor, or ``None``.
        activation: ``none``, ``relu``, ``elu``, ``silu``, ``gelu``, ``sigmoid``, ``tanh``, or one of those
            above.
        residual: the number of an earlier step of the same stride whose value is added after the activation,
            or ``None``.
        stride: the value is zero but at rows and columns that are multiples of it. A convolution of stride s
            is a step of stride s, whose taps are read in a finer value. A transposed convolution is a finer
            step, each of whose taps finds a value in one of s positions, and zeros in the others.

    Raises:
        TypeError: ``width`` or ``stride`` isn't an integer, or ``activation`` isn't a string.
        ValueError: ``width`` or ``stride`` isn't positive, or ``width`` is odd for an activation that halves
            it; or there is no such activation.

    >>> Step((Term(CODES, ((0, -1),), "left"),), width=8, activation="gate").channels
    4
    """

    terms: tuple[Term, ...]
    width: int
    bias: str | None = None
    label_bias: str | None = None
    activation: str = "none"
    residual: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        check_integer("width", self.width)
        check_integer("stride", self.stride)
        check_choice("activation", self.activation, ACTIVATIONS)
        if self.activation in PAIRED and self.width % 2:
            raise ValueError(f"width is {self.width}; want an even number, which {self.activation} halves")

    @property
    def channels(self) -> int:
        """Channels of the step's value."""
        return channels(self.width, self.activation)


AnyStep = Step | Attention


@dataclass(frozen=True)
class Program:
    """Steps in the order in which they are computed; the last one's value is the logits.

    A position may have several codes, which are drawn one after another. Then the last steps' values are the
    logits, a step for each code, and the logits of a code may depend on the position's codes before it.

    Args:
        steps: at least one, ``Step`` or ``Attention``.
        num_embeddings: K, the number of codes to choose from.
        num_quantizers: S, how many codes a position has.
        num_mixtures: M, if the last steps' values are no logits, but the parameters of mixtures of M logistic
            distributions, ``3 M`` channels (``vqfast/sampling/mixture.py``); 0 for logits.
        condition_stride: how many columns each entry of ``CONDITION`` stands for. Above 1 the program is of
            sequences: it reads no rows above, no step is known when a row starts, and none has a stride.

    Raises:
        TypeError: a number isn't an integer.
        ValueError: the logits depend on their own or a later code or have a stride or another number of
            channels, a term or an attention isn't as ``Term`` or ``Attention`` says, or ``condition_stride``
            doesn't fit.

    >>> hidden = Step((Term(CODES, ((-1, 0), (0, -1)), "codes"),), width=4, activation="relu")
    >>> logits = Step((Term(0, weight="head"),), width=8, bias="bias")
    >>> program = Program((hidden, logits), num_embeddings=8)
    >>> program.phases()
    [<Phase.POSITION: 1>, <Phase.POSITION: 1>]
    >>> Program((Step((Term(CODES, weight="codes"),), width=8),), num_embeddings=8)
    Traceback (most recent call last):
    ValueError: the program isn't causal: its logits depend on the code that they are for
    """

    steps: tuple[AnyStep, ...]
    num_embeddings: int
    num_quantizers: int = 1
    num_mixtures: int = 0
    condition_stride: int = 1

    def __post_init__(self) -> None:
        check_integer("num_embeddings", self.num_embeddings)
        check_integer("num_quantizers", self.num_quantizers)
        check_integer("num_mixtures", self.num_mixtures, 0)
        check_integer("condition_stride", self.condition_stride)
        if len(self.steps) < self.num_quantizers:
            raise ValueError(f"steps has {len(self.steps)}; want at least {self.num_quantizers}")
        readable = len(self.steps) - self.num_quantizers  # no step reads logits
        for number, step in enumerate(self.steps):
            if isinstance(step, Attention):
                _check_attention(number, step, self.steps, min(number, readable))
                continue
            if not step.terms:
                raise ValueError(f"step {number} has no terms")
            for term in step.terms:
                _check_term(number, term, range(self.codes[-1], min(number, readable)))
                _check_taps(number, term, math.gcd(step.stride, self.stride_of(term.source)))
            added = {term.source: step.width for term in step.terms if term.weight is None}
            if step.residual is not None:
                added[step.residual] = step.channels
            for source, width in added.items():
                if not 0 <= source < min(number, readable) or (
                    (self.steps[source].channels, self.steps[source].stride) != (width, step.stride)
                ):
                    raise ValueError(
                        f"step {number} adds step {source}; want an earlier one of {width} channels and "
                        f"stride {step.stride}"
                    )
        outputs = 3 * self.num_mixtures or self.num_embeddings
        for code, phase in enumerate(self.phases()[-self.num_quantizers :]):
            if (got := self.steps[readable + code].channels) != outputs:
                raise ValueError(f"the last steps have {got} channels; want {outputs}")
            if (stride := self.steps[readable + code].stride) != 1:
                raise ValueError(f"the last steps have stride {stride}; want 1")
            if phase >= Phase.CODE + code:
                raise ValueError("the program isn't causal: its logits depend on the code that they are for")
        sources = (*self.codes, *range(readable))
        if self.condition_stride > 1 and (self.reach(*sources)[0] > 1 or Phase.ROW in self.phases()):
            raise ValueError(f"condition_stride is {self.condition_stride}; want 1: steps read rows above")
        if self.condition_stride > 1 and any(step.stride > 1 for step in self.steps):
            raise ValueError(f"condition_stride is {self.condition_stride}; want 1: steps have strides")

    @property
    def codes(self) -> range:
        """The sources that are the codes of each position."""
        return range(codes_of(0), codes_of(self.num_quantizers), -1)

    @property
    def num_choices(self) -> int:
        """What a draw chooses from: the number of codes, or of components."""
        return self.num_mixtures or self.num_embeddings

    def phases(self) -> list[int]:
        """When each step can be computed, see ``Phase``."""
        return list(self._phases)

    @cached_property
    def _phases(self) -> list[int]:
        phases: list[int] = []
        for step in self.steps:
            phases.append(phase_of(step, phases))
        return phases

    def stride_of(self, source: int) -> int:
        """The stride of a source; the codes and the map have 1."""
        return self.steps[source].stride if source >= 0 else 1

    def reach(self, *sources: int) -> tuple[int, int, int]:
        """How much of these values is read from a position: ``(rows, left, right)``.

        ``rows`` counts its own row and those above; ``left`` and ``right`` count columns beside it.
        """
        rows, left, right = zip(
            (1, 0, 0), *(self._reaches[source] for source in sources if source in self._reaches), strict=True
        )
        return max(rows), max(left), max(right)

    @cached_property
    def _reaches(self) -> dict[int, tuple[int, int, int]]:
        """The reach of each source that is read."""
        taps: dict[int, list[Offset]] = {}
        for step in self.steps:
            for term in step.terms:
                taps.setdefault(term.source, [(0, 0)]).extend(term.taps)
        spans = {source: tuple(zip(*offsets, strict=True)) for source, offsets in taps.items()}
        return {source: (1 - min(dys), -min(dxs), max(dxs)) for source, (dys, dxs) in spans.items()}

    def strided_reach(self, number: int) -> tuple[int, int, int]:
        """``reach`` of a step in rows and columns that are multiples of its stride."""
        (rows, left, right), stride = self.reach(number), self.steps[number].stride
        return (rows - 1) // stride + 1, left // stride, -(-right // stride)

    def block(self, height: int, width: int) -> int:
        """How many columns of a row an executor keeps: all, but of a single long row only a block.

        A block begins at a multiple of every stride.
        """
        ahead = any(right > 0 for _, _, right in self._reaches.values())
        strides = math.lcm(*(step.stride for step in self.steps))
        return width if height > 1 or ahead else min(width, max(1, _BLOCK_COLUMNS // strides) * strides)

    def values(self, height: int, width: int, unit: int = 1, side_by_side: int = 1) -> int:
        """How many numbers an executor keeps for a sample.

        These are each step's last rows, its sums of the rows that are drawn and of one position, and the keys
        and values of attentions.

        Args:
            height, width: of the grid.
            unit: channels and positions are padded to a multiple of it.
            side_by_side: rows that are drawn side by side.
        """

        def padded(channels: int) -> int:
            return -(-channels // unit) * unit

        total, columns = 0, self.block(height, width)
        for number, step in enumerate(self.steps):
            rows, left, right = self.strided_reach(number)
            block = -(-columns // step.stride)
            total += (rows + side_by_side - 1) * (left + block + right) * padded(step.channels)
            total += (side_by_side * block + 1) * padded(step.width)
            if isinstance(step, Attention):
                kept = self.steps[step.key].channels + step.width
                total += kept * (padded(height * width) + 2 * (unit - 1))
        return total


def _check_term(number: int, term: Term, sources: range) -> None:
    """Raises ValueError unless step ``number`` can have the term and read these sources."""
    if term.source not in sources:
        raise ValueError(f"step {number} reads step {term.source}; want an earlier one, CODES or CONDITION")
    own = term.taps == ((0, 0),)
    bare = term.weight is None and (term.source < 0 or not own)
    if not term.taps or bare or (term.source == CONDITION and not own):
        raise ValueError(f"step {number} has no term like {term}; see Term for those that it can have")


def _check_taps(number: int, term: Term, multiple: int) -> None:
    """Raises ValueError unless a step reads the term's source where it may have values."""
    if any(offset % multiple for tap in term.taps for offset in tap):
        raise ValueError(
            f"step {number} reads step {term.source} at {term.taps}; want multiples of {multiple}: "
            "elsewhere it is zero"
        )


def _check_attention(number: int, step: Attention, steps: tuple[AnyStep, ...], readable: int) -> None:
    """Raises ValueError unless step ``number`` can be the attention; it may read the first steps only."""
    if max(step.sources) >= readable:
        raise ValueError(f"step {number} is {step}; want earlier steps as query, key and value")
    query, key, value = (steps[source].channels for source in step.sources)
    if query != key or query % step.heads or value != step.width:
        raise ValueError(
            f"step {number} is {step} of a query, key and value with {query}, {key} and {value} channels; "
            "want as many of query and key, which heads divides, and width of value"
        )
    if any(steps[source].stride > 1 for source in step.sources):
        raise ValueError(f"step {number} is an attention of steps with strides; want stride 1")


def phase_of(step: AnyStep, phases: list[int]) -> int:
    """When a step can be computed, if the steps before it have these phases.

    Raises:
        ValueError: never, since it reads a position that lies ahead in raster order.
    """
    if isinstance(step, Attention):
        read_here = step.sources if step.own else (step.query,)
        return max(Phase.POSITION, *(phases[source] for source in read_here))
    needs = [available(term.source, tap, phases) for term in step.terms for tap in term.taps]
    if step.residual is not None:
        needs.append(available(step.residual, (0, 0), phases))
    return max(needs)


def available(source: int, tap: Offset, phases: list[int]) -> int:
    """When the value of ``source`` at ``tap`` can be read, for steps with these phases.

    Raises:
        ValueError: never, since the tap lies ahead in raster order.
    """
    dy, dx = tap
    if source == CONDITION or dy < 0:
        return Phase.ROW
    own = Phase.CODE + CODES - source if source <= CODES else phases[source]
    if own == Phase.ROW and dy == 0:
        return Phase.ROW
    if dy > 0 or dx > 0:
        raise ValueError(f"the program isn't causal: step {len(phases)} reads step {source} at {tap}")
    return own if dx == 0 else Phase.POSITION
