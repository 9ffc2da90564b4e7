"""A sampling program laid out for the GPU: where values are kept, and the tables that the kernel reads."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.activations import ACTIVATIONS, PAIRED
from vqfast.sampling.attention import Attention
from vqfast.sampling.executors.triton_tunings import MAX_AHEAD, Launch, Tuning
from vqfast.sampling.program import CODES, CONDITION, Offset, Phase, Program, Step, Term, available
from vqfast.sampling.wavefront import Wavefront

UNIT = 16  # elements in a unit; bases and strides count units, so that the compiler knows their alignment
# A place: where a value is read or written. Its cache, what is added to the row and column of the position
# that is computed, and 2 ** 31 divided by the numbers of rows and columns.
PLACE = ("base", "stride", "rows", "columns", "dy", "dx", "per_row", "per_column")
NOWHERE = [0, 0, 1, 1, 0, 0, 1 << 31, 1 << 31]
# A job: a matrix product, an attention, or a draw. The places of a product are those of its result, its
# residual and its partial sums, then those of the values that it multiplies, adds and looks up. An attention
# has those of its result, query, key and value, a draw those of the codes and of the logits.
JOB = (
    "place",  # the number of its first place
    "draws",  # 1 + s for the draw of a position's code s, whose other fields are 0
    "tiles",  # number of tiles of columns
    "products",  # number of tiles along the depth of the matrix
    "adds",  # number of values that are added as they are
    "lookups",  # number of tables
    "weights",  # the first tile of the matrix
    "table",  # the unit where the first table begins
    "start",  # the unit of the biases by label, from which the sums start
    "partial",  # 1 if they start from the partial sums instead
    "width",  # number of columns
    "sums",  # 1 if the result is kept among the sums
    "activation",
    "residual",  # 1 if there is one
    "heads",  # of an attention; 0 for others. Its width is that of a head
    "head_channels",  # channels of a head's key
    "scale",  # the bits of a float64
    "own",  # 1 if the position itself counts as an earlier one
    "reciprocal",  # of the grid's width, as ``divided`` takes it
    "stride",  # of a product: it is zero but at rows and columns that are multiples of it
    "lead",  # columns beyond those of its chunk at which it is computed
)


def head_channels(program: Program) -> int:
    """Channels of the widest head of an attention, padded to a power of two; 0 without attention."""
    heads = [
        program.steps[source].channels // step.heads
        for step in program.steps
        if isinstance(step, Attention)
        for source in step.sources
    ]
    return max(UNIT, 1 << (max(heads) - 1).bit_length()) if heads else 0


def padded(count: int, multiple: int) -> int:
    """``count`` rounded up to a multiple."""
    return -(-count // multiple) * multiple


@dataclass(frozen=True)
class Cache:
    """The last rows of a value, ``[row slot][column slot][image][channel]``.

    ``base`` and ``stride`` (from image to image) are in units; ``left`` counts columns of padding.
    """

    base: int
    stride: int
    rows: int
    columns: int
    left: int = 0

    def place(self, tap: Offset = (0, 0), offset: int = 0) -> list[int]:
        """The place of the value at ``tap``, from the channel at ``offset`` units on."""
        size, at = (self.rows, self.columns), (self.rows + tap[0], self.left + tap[1])
        return [self.base + offset, self.stride, *size, *at, *((1 << 31) // each for each in size)]

    def view(self, memory: Tensor, batch: int) -> Tensor:
        """``(rows, columns, batch, channels)``."""
        size = torch.Size((self.rows, self.columns, batch, self.stride * UNIT))
        return memory[self.base * UNIT :][: size.numel()].view(size)

    def slot(self, y: int, x: int) -> tuple[int, int]:
        """The row and column slot of a position."""
        return y % self.rows, (x + self.left) % self.columns


class Tables:
    """The tables of one launch: jobs, their places, and weights packed into its tiles."""

    def __init__(self, launch: Launch, like: Tensor) -> None:
        self.launch = launch
        self.jobs: list[list[int]] = []
        self.places: list[list[int]] = []
        self._weights, self._tables = [like.new_zeros(0)], [like.new_zeros(0)]

    def add(self, places: list[list[int]], **fields: int) -> None:
        """Appends a job."""
        self.jobs.append([{**fields, "place": len(self.places)}.get(name, 0) for name in JOB])
        self.places += places

    def multiply(self, matrices: list[Tensor], columns: int) -> dict[str, int]:
        """Packs matrices ``(in, >= columns)``, one below the other; returns the fields of their product."""
        depth, wide = self.launch.depth, self.launch.columns
        tiles = -(-columns // wide)
        first = sum(map(len, self._weights)) // (depth * wide)
        parts = [F.pad(matrix[:, : tiles * wide], (0, 0, 0, -len(matrix) % depth)) for matrix in matrices]
        if parts:
            blocks = torch.cat(parts).view(-1, depth, tiles, wide)
            order = (2, 0, 1, 3) if self.launch.dot(blocks.dtype) else (2, 0, 3, 1)
            self._weights.append(blocks.permute(order).reshape(-1))
        return {"tiles": tiles, "products": sum(map(len, parts)) // depth, "weights": first}

    def look_up(self, tables: list[Tensor]) -> dict[str, int]:
        """Keeps tables ``(K, columns)``, with zeros for the code outside of the grid; returns the fields."""
        first = sum(map(len, self._tables)) // UNIT
        self._tables += [F.pad(table, (0, 0, 0, 1)).reshape(-1) for table in tables]
        return {"lookups": len(tables), "table": first}

    def tensors(self) -> dict[str, Tensor]:
        """The tables as the kernel's arguments. It reads some places beyond the last."""
        spare = self._weights[0].new_zeros(self.launch.depth * self.launch.columns)
        return {
            "jobs": torch.tensor(self.jobs, device=spare.device),
            "places": torch.tensor(self.places + [NOWHERE] * MAX_AHEAD, device=spare.device),
            "weights": torch.cat([*self._weights, spare]),
            "tables": torch.cat([*self._tables, spare]),
        }


class Plan:
    """A program laid out for a batch of codes on a grid.

    Args:
        program: what to run.
        weights: the tensors that the program names.
        front: the order in which its positions are drawn.
        batch: number of images, a multiple of those of a group.
        num_classes: number of labels, 1 for none.
        condition_channels: of the map, 0 for none.
        tuning: how the launches divide the work.
    """

    def __init__(
        self,
        program: Program,
        weights: dict[str, Tensor],
        front: Wavefront,
        batch: int,
        num_classes: int,
        condition_channels: int,
        tuning: Tuning,
    ) -> None:
        last = range(len(program.steps) - program.num_quantizers, len(program.steps))
        if any(
            isinstance(step, Attention) or step.activation in PAIRED for step in program.steps[last.start :]
        ):  # logits are kept among the sums, where no paired activation and no attention writes
            copies = tuple(Step((Term(number),), program.num_embeddings) for number in last)
            program = replace(program, steps=(*program.steps, *copies))
        self.program, self.weights, self.batch, self.num_classes = program, weights, batch, num_classes
        self.phases, self.block = program.phases(), program.block(front.height, front.width)
        self.front = front
        attentions = [step for step in program.steps if isinstance(step, Attention)]
        self.attended = {source for step in attentions for source in (step.key, step.value)}
        self._margins = [
            max((program.reach(source)[side] for source in self.attended), default=0) for side in (1, 2)
        ]
        self._columns, self._depth = (
            max(UNIT, *(getattr(launch, of) for launch in tuning)) for of in ("columns", "depth")
        )
        self.units = {"values": 0, "sums": 0}  # taken so far
        rows, left, right = program.reach(*program.codes)
        rows, columns = rows + front.rows - 1, left + self.block + right
        self.codes = [  # of each code of a position
            Cache(code * rows * columns * batch, 1, rows, columns, left) for code in range(len(program.codes))
        ]
        self.first_logits = len(program.steps) - len(self.codes)  # number of the step
        self.condition = self._cache("values", condition_channels, front.rows, self.block)
        self.values = [self._value(number) for number in range(len(program.steps))]
        self.partials = [self._partial(number) for number in range(len(program.steps))]
        self.starts = [self._cache("sums", step.width, 1, 1, images=num_classes) for step in program.steps]

        weight = next(iter(weights.values()))
        self.row, self.position = (Tables(launch, weight) for launch in tuning)
        for number, phase in enumerate(self.phases):
            if phase == Phase.ROW or self._taps(number, early=True):
                self._add(self.row, number, early=True)
        self._add_phase(Phase.POSITION)
        self.drawing: list[int] = []  # the jobs that draw
        for code, cache in enumerate(self.codes):
            self.drawing.append(len(self.position.jobs))
            logits = self.values[self.first_logits + code]
            self.position.add([cache.place(), logits.place()], draws=1 + code)
            self._add_phase(Phase.CODE + code)

    def _cache(
        self, memory: str, channels: int, rows: int, columns: int, left: int = 0, images: int | None = None
    ) -> Cache:
        stride = padded(channels, self._depth if memory == "values" else self._columns) // UNIT
        base = self.units[memory]
        self.units[memory] += rows * columns * (images or self.batch) * stride
        return Cache(base, stride, rows, columns, left)

    def _value(self, number: int) -> Cache:
        """The cache of a step's value.

        A value that is read only at its own position keeps one column. A key or value of an attention keeps
        all rows and columns, and all of these have the same margins.
        """
        rows, left, right = self.program.reach(number)
        if number in self.attended:
            left, right = self._margins
            rows, columns = max(rows, self.front.height), left + self.front.width + right
        elif self.phases[number] != Phase.ROW and (rows, left, right) == (1, 0, 0):
            columns = 1
        else:
            columns = left + self.block + right
        memory = "sums" if number >= self.first_logits else "values"
        channels = self.program.steps[number].channels
        return self._cache(memory, channels, rows + self.front.rows - 1, columns, left)

    def _partial(self, number: int) -> Cache:
        """The cache of a step's partial sums; without columns for steps that have none."""
        early = self.phases[number] != Phase.ROW and self._taps(number, early=True)
        columns = self.front.chunk if early else 0
        return self._cache("sums", self.program.steps[number].width, self.front.rows, columns)

    def _taps(self, number: int, early: bool) -> list[tuple[Term, int]]:
        """The taps that can (``early``), or can't, be read when a row starts."""
        return [
            (term, i)
            for term in self.program.steps[number].terms
            for i, tap in enumerate(term.taps)
            if (available(term.source, tap, self.phases[:number]) == Phase.ROW) == early
        ]

    def _ordered(self, step: Step | Attention, weight: Tensor) -> Tensor:
        """``(..., width)`` in the order of the sums: padded, channels that are multiplied side by side."""
        if step.activation in PAIRED:
            weight = weight.reshape(*weight.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2)
        return F.pad(weight, (0, -step.width % self._columns))

    def _add_phase(self, phase: int) -> None:
        for number in range(len(self.phases)):
            step = self.program.steps[number]
            if self.phases[number] != phase:
                continue
            if isinstance(step, Attention):
                self._add_attention(number, step)
            else:
                self._add(self.position, number, early=False)

    def _add_attention(self, number: int, step: Attention) -> None:
        """Appends the job of an attention."""
        (scale,) = struct.unpack("q", struct.pack("d", step.scale))
        self.position.add(
            [self.values[source].place() for source in (number, *step.sources)],
            width=step.width // step.heads,
            heads=step.heads,
            head_channels=self.program.steps[step.key].channels // step.heads,
            scale=scale,
            own=int(step.own),
            reciprocal=(1 << 31) // self.front.width,
        )

    def _add(self, to: Tables, number: int, early: bool) -> None:
        """Appends the job of a step's early taps, or of its late ones."""
        step, partial = self.program.steps[number], self.partials[number]
        ordered = {
            term.weight: self._ordered(step, self.weights[term.weight]) for term in step.terms if term.weight
        }
        matrices, products, adds, tables, lookups = [], [], [], [], []
        for term, i in self._taps(number, early):
            tap = term.taps[i]
            if term.source <= CODES and term.weight is not None:
                tables.append(ordered[term.weight][i])
                lookups.append(self.codes[CODES - term.source].place(tap))
                continue
            cache = self.condition if term.source == CONDITION else self.values[term.source]
            if term.weight is None:
                adds.append(cache.place(tap))
            else:
                matrices.append(ordered[term.weight][i])
                depths = range(0, len(matrices[-1]), to.launch.depth)
                products += [cache.place(tap, depth // UNIT) for depth in depths]
        unfinished = early and self.phases[number] != Phase.ROW
        result = partial if unfinished else self.values[number]
        residual = None if unfinished else step.residual
        to.add(
            [
                result.place(),
                (result if residual is None else self.values[residual]).place(),
                Cache(partial.base, partial.stride, partial.rows, max(1, partial.columns)).place(),
                *products,
                *adds,
                *lookups,
            ],
            **to.multiply(matrices, step.width),
            adds=len(adds),
            **to.look_up(tables),
            start=self.starts[number].base,
            partial=int(not early and partial.columns > 0),
            width=step.width,
            sums=int(unfinished or number >= self.first_logits),
            activation=0 if unfinished else ACTIVATIONS.index(step.activation),
            residual=int(residual is not None),
            stride=step.stride,
            lead=self.front.leads[number] if number < len(self.front.leads) else 0,
        )

    def write_starts(self, sums: Tensor) -> None:
        """Writes the biases for each label."""
        for step, start in zip(self.program.steps, self.starts, strict=True):
            rows = start.view(sums, self.num_classes)[0, 0]
            for name in (step.bias, step.label_bias):
                if name is not None:
                    rows += self._ordered(step, self.weights[name])
