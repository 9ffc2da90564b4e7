"""The wavefront: rows of the grid that are drawn side by side, each some columns behind the row above it.

A row may go on as soon as the rows above have all that it reads. So one reading of a weight serves the
positions of several rows, and threads meet once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vqfast.sampling.attention import Attention
from vqfast.sampling.program import CODES, Phase, Program, available


@dataclass(frozen=True)
class Wavefront:
    """Which positions are drawn at which moment.

    At moment ``m`` row ``y`` is at column ``m - y * distance``, if it has that column. Where this column is a
    multiple of ``chunk``, all that is early (``Phase.ROW``) is computed first, for as many columns; each step
    begins and ends ``leads[step]`` columns further right, since others read it there. The first columns of a
    row are computed with its first chunk.

    Args:
        height, width: of the grid.
        distance: columns between a row and the one above; with ``width`` one row is drawn after another.
        chunk: columns; all rows begin their chunks at the same moments.
        leads: a number for each step.

    >>> front = Wavefront(height=3, width=8, distance=4, chunk=2, leads=(0,))
    >>> front.rows, front.moments, [front.positions(m) for m in (0, 5, 16)]
    (2, 16, [0, 6, 24])
    """

    height: int
    width: int
    distance: int
    chunk: int
    leads: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows are drawn side by side at most."""
        return min(self.height, -(-self.width // self.distance))

    @property
    def moments(self) -> int:
        """How many moments there are."""
        return (self.height - 1) * self.distance + self.width

    def side_by_side(self, moment: int) -> range:
        """The rows that have a position at a moment."""
        first = max(0, (moment - self.width) // self.distance + 1)
        return range(first, min(self.height, moment // self.distance + 1))

    def positions(self, moments: int) -> int:
        """How many positions are drawn after so many moments."""
        return sum(min(self.width, max(0, moments - y * self.distance)) for y in range(self.height))


def raster(program: Program, height: int, width: int) -> Wavefront:
    """One row after another; the early values of a row, or of a block of it, at once."""
    return Wavefront(height, width, width, program.block(height, width), (0,) * len(program.steps))


def wavefront(program: Program, weights: Mapping[str, Tensor], height: int, width: int) -> Wavefront:
    """The order that reads the fewest weights, all samples of a batch taken together."""
    early, late = weights_read(program, weights)
    return min(
        orders(program, height, width),
        key=lambda front: front.distance * (late + early / front.chunk),  # while a row is drawn
    )


def orders(program: Program, height: int, width: int) -> list[Wavefront]:
    """The raster order, and then the nearest rows for each number of columns in a chunk.

    Attentions and steps with strides have the raster order alone.
    """
    fronts = [raster(program, height, width)]
    if height == 1 or any(isinstance(step, Attention) or step.stride > 1 for step in program.steps):
        return fronts
    phases = program.phases()
    leads = _leads(program, phases)
    least, beyond = _reads_above(program, phases, leads)
    for chunk in range(1, width):
        needed = max([least, *(-(-(chunk + columns) // rows) for rows, columns in beyond.items())])
        distance = -(-needed // chunk) * chunk
        if distance < width:
            fronts.append(Wavefront(height, width, distance, chunk, leads))
    return fronts


def _leads(program: Program, phases: list[int]) -> tuple[int, ...]:
    """How many columns beyond those of a chunk each step is read at by others of the row."""
    leads = [0] * len(program.steps)
    for number in reversed(range(len(program.steps))):
        step, own = program.steps[number], leads[number]
        if step.residual is not None and phases[step.residual] == Phase.ROW:
            leads[step.residual] = max(leads[step.residual], own)
        for term in step.terms:
            if term.source < 0 or phases[term.source] != Phase.ROW:
                continue
            reach = max((dx for dy, dx in term.taps if dy == 0), default=0)
            leads[term.source] = max(leads[term.source], own + reach)
    return tuple(leads)


def _reads_above(program: Program, phases: list[int], leads: tuple[int, ...]) -> tuple[int, dict[int, int]]:
    """How many columns a row must be behind those above, for what is early there, and what else it reads.

    That is, for each number of rows up, how many columns beyond its own chunk it reads what isn't early.
    """
    least, beyond = 1, dict[int, int]()
    for number, step in enumerate(program.steps):
        for term in step.terms:
            early = term.source >= 0 and phases[term.source] == Phase.ROW
            for dy, dx in term.taps:
                columns = leads[number] + dx
                if dy < 0 and early:
                    least = max(least, -(-(columns - leads[term.source]) // -dy))
                elif dy < 0:
                    beyond[-dy] = max(beyond.get(-dy, columns), columns)
    return least, beyond


def weights_read(program: Program, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many numbers of matrices are multiplied early, and how many late."""
    phases = program.phases()
    early = late = 0
    for step in program.steps:
        for term in step.terms:
            if term.source <= CODES or term.weight is None:
                continue
            first = sum(available(term.source, tap, phases) == Phase.ROW for tap in term.taps)
            each = weights[term.weight][0].numel()
            early, late = early + first * each, late + (len(term.taps) - first) * each
    return early, late
