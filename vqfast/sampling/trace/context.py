"""What the rules work with: the node that is interpreted, and the steps that its values become."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from vqfast.sampling.activations import PAIRED
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, CONDITION, Phase, Term, available, phase_of
from vqfast.sampling.trace.extended import before_grid, extended_step, is_step_and_constant
from vqfast.sampling.trace.graph import evaluate
from vqfast.sampling.trace.layout import Layout, Unsupported, by_position, common_layout, shape_of
from vqfast.sampling.trace.maps import Map
from vqfast.sampling.trace.values import (
    FIRST_MAP,
    ONES,
    Known,
    Sum,
    broadcast,
    by_code,
    is_identity,
    is_zero_outside,
    selects_channels,
)


class Context:
    """The state of a lowering.

    Args:
        graph: of a network's call.
        inputs: the inputs of the trace by name: codes ``(B, H, W)`` or ``(B, T)``, labels, condition.
        num_embeddings: K, the number of codes.
        num_classes: number of labels, or ``None``.
        num_quantizers: S, the last axis of the codes; ``None`` for codes without it.
        after_row: whether values that look ahead in their own row become steps of the row below.
    """

    def __init__(
        self,
        graph: fx.Graph,
        inputs: dict[str, Tensor],
        num_embeddings: int,
        num_classes: int | None,
        num_quantizers: int | None,
        after_row: bool = False,
    ) -> None:
        self.graph, self.inputs = graph, inputs
        self.num_embeddings, self.num_classes = num_embeddings, num_classes or 0
        self.device = inputs["codes"].device
        result: Any = next(reversed(graph.nodes)).args[0]
        self.dtype: torch.dtype = result.meta["val"].dtype
        self.after_row = after_row
        self.several = num_quantizers is not None
        self.num_codes = num_quantizers or 1  # of a position
        self.batch, *self.spatial = inputs["codes"].shape[: -1 if self.several else None]
        self.grid = tuple([1, *self.spatial][-2:])
        self.node: Any = next(iter(graph.nodes))  # the node that is interpreted
        self.values: dict[fx.Node, Any] = {}  # of the nodes before it
        self.builder = ProgramBuilder()
        self.origins: list[fx.Node] = []  # of each step, the node that it computes
        self.phases: list[int] = []  # of each step
        self.maps: list[Map] = []
        self.map_weights: dict[str, list[tuple[int, Tensor]]] = {}  # by name: a map's number and its matrix

    # Values

    def shape(self) -> tuple[int, ...]:
        """The shape of the node that is interpreted, or of its first result."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, (tuple, list)) else value).shape)

    def layout(self, *operands: Any) -> Layout:
        """The layout of the node that is interpreted, to which its operands broadcast."""
        return common_layout([each.layout for each in operands if isinstance(each, Sum)], self.shape())

    def covers_grid(self, value: Sum) -> bool:
        """Whether the value has one position for each position of the grid, or of its coarser grid."""
        return (value.size("y"), value.size("x")) == self.grid_of(value)

    def grid_of(self, value: Sum) -> tuple[int, ...]:
        """How many rows and columns the grid has at a value's stride."""
        return tuple(-(-n // value.stride) for n in self.grid)

    def stride_of(self, source: int) -> int:
        """The stride of a source."""
        return self.builder.steps[source].stride if source >= 0 else 1

    def inside(self, value: Sum) -> bool:
        """Whether no tap of a value leads outside of the grid, as after a crop."""
        last = ((value.size(axis) - 1) * value.stride for axis in "yx")
        spare = tuple(n - 1 - at for n, at in zip(self.grid, last, strict=True))
        return all(0 <= dy <= spare[0] and 0 <= dx <= spare[1] for _, dy, dx in value.taps)

    def linear(self, value: Sum) -> Sum:
        """The value without an activation that is still to be applied."""
        return value if value.activation == "none" else self.step(value)

    def readable(self, value: Sum, offsets: list[tuple[int, int]]) -> Sum:
        """The value in a form that is zero outside of the grid when it is read at these offsets.

        Channels of steps and tables of codes are zero outside. Anything else becomes a step. But a value that
        looks ahead at its own position can be no step; it stays a sum, to be read where it looks back.
        """
        value = self.linear(value)
        table = value.code_table()
        whole = self.covers_grid(value)
        own = all(tap[1:] == (0, 0) for tap in value.taps)
        if table is not None and value.bias is not None and whole and own:
            table = table + value.bias
            value = replace(value, taps=by_code(table, (0, 0), value.codes_read()), bias=None, steps=())
        zero = is_zero_outside(value, offsets)
        narrow = table is not None and value.bias is None and (len(table) <= table.shape[1] or not whole)
        if narrow and (zero or not whole):
            return value
        if not value.taps and value.labels is None and whole:
            ones = {} if value.bias is None else {(ONES, 0, 0): value.bias[None]}
            return replace(value, taps=ones, bias=None, steps=()) if offsets else value
        sideways = [
            (max(dy, 0), dx) for dy, dx in offsets
        ]  # above the grid, steps of later rows are zero too
        if selects_channels(value) and (not whole or is_zero_outside(value, sideways)):
            return value
        if not whole and not offsets and is_step_and_constant(value):
            return value
        if whole and (self.phase(value) is not None or not zero):
            return self.step(value)
        begun = value.bias is None or whole or self.begins(value, offsets)
        if not begun or not zero:
            return self.step(value)
        if value.bias is None:
            return value
        return replace(value, taps={**value.taps, (ONES, 0, 0): value.bias[None]}, bias=None, steps=())

    def begins(self, value: Sum, offsets: list[tuple[int, int]]) -> bool:
        """Whether a value is the beginning of one on the grid, and read outside before it only."""
        rows, columns = self.grid_of(value)
        fits = value.size("y") <= rows and value.size("x") <= columns
        return fits and all(max(offset) <= 0 for offset in offsets)

    def phase(self, value: Sum) -> int | None:
        """When a step of the value could run; ``None`` if never, since it looks ahead."""
        try:
            phases = [available(tap[0], tap[1:], self.phases) for tap in value.taps if tap[0] > ONES]
            return max(phases, default=Phase.ROW)
        except ValueError:
            return None

    def columns_by_phase(self, value: Sum) -> list[Tensor]:
        """The channels of a value, int64, parted by when they can be computed; all if one looks ahead.

        Sub-pixel masks let some channels see fewer of their position's codes than others.
        """
        channels = torch.arange(value.size("c"))
        if self.num_codes == 1 or self.phase(value) is None or not value.taps:
            return [channels]
        phases = torch.zeros(next(iter(value.taps.values())).shape[1], dtype=torch.int64)
        for tap, matrix in value.taps.items():
            if tap[0] > ONES:
                needed = available(tap[0], tap[1:], self.phases) * (matrix != 0).any(0).long().cpu()
                phases = phases.maximum(needed)
        phases = phases.view(-1, len(channels)).amax(0)  # both halves of an activation of two
        return [channels[phases == phase] for phase in phases.unique()]

    def multiplicand(self, value: Sum, width: int) -> Sum:
        """A value that is multiplied by a matrix of ``width`` columns: a step, if that saves products."""
        value = self.linear(value)
        matrices = [matrix for (source, _, _), matrix in value.taps.items() if source > CODES]
        multiplied_out = sum(len(matrix) * width for matrix in matrices)
        as_step = sum(matrix.numel() for matrix in matrices if not is_identity(matrix))
        return value if multiplied_out <= as_step + value.size("c") * width else self.readable(value, [])

    def identity(self, size: int) -> Tensor:
        """The identity matrix."""
        return torch.eye(size, dtype=self.dtype, device=self.device)

    def as_sum(self, value: Known | Sum | float, layout: Layout) -> Sum:
        """A value that broadcasts to the layout, as a sum: a constant is a bias, or a map that is read."""
        if isinstance(value, Sum):
            return broadcast(self.linear(value), layout)
        if not isinstance(value, Known):
            value = Known(torch.tensor(value, dtype=torch.float64, device=self.device), frozenset())
        positions = by_position(value.value.expand(shape_of(layout)), layout)
        uniform = bool((positions == positions[:, :1, :1]).all())
        if uniform and not value.needs and (positions == positions[:1]).all():
            return Sum(layout, {}, positions[0, 0, 0].to(self.dtype))
        if uniform and value.needs == {"labels"} and (labels := self.by_label(value, layout)) is not None:
            return Sum(layout, {}, labels=labels)
        if value.node is None:
            raise Unsupported("a function of a value that differs by position, label or condition")
        sizes = [math.prod(n for dim in layout for name, n in dim if name == axis) for axis in "yx"]
        beyond = sizes[0] - self.grid[0], sizes[1] - self.grid[1]
        index = list(self.graph.nodes).index(value.node)
        made = Map(index, layout, positions.shape[3], beyond=beyond, inverse=value.inverse)
        return Sum(layout, {(FIRST_MAP - self.map_number(made), 0, 0): self.identity(made.channels)})

    def map_number(self, made: Map) -> int:
        """The number of a map among all; a new one is appended."""
        if made not in self.maps:
            self.maps.append(made)
        return self.maps.index(made)

    def by_label(self, value: Known, layout: Layout) -> Tensor | None:
        """What a value that depends on labels is for each label, ``(num_classes, columns)``.

        ``None`` if it differs by position for one of them, or if it has no node.
        """
        if value.node is None:
            return None
        rows = []
        for first in range(0, self.num_classes, self.batch):
            labels = torch.arange(first, first + self.batch, device=self.device)
            inputs = self.inputs | {"labels": labels.clamp(max=self.num_classes - 1)}
            tensor = evaluate([value.node], tuple(inputs.values()))[0]
            tensor = 1 / tensor if value.inverse else tensor
            positions = by_position(tensor.expand(shape_of(layout)), layout)
            if not (positions == positions[:, :1, :1]).all():
                return None
            rows.append(positions[:, 0, 0])
        return torch.cat(rows)[: self.num_classes].to(self.dtype)

    # Steps

    def check_step(self, value: Sum) -> None:
        """Raises Unsupported if the value can't be that of a step."""
        if not self.covers_grid(value):
            size = f"{value.size('y')} x {value.size('x')}"
            raise Unsupported(f"{size} values for {' x '.join(map(str, self.grid))} positions")

    def step(self, value: Sum) -> Sum:
        """The value as that of a step, or of several if it is parted; they are zero outside of the grid."""
        if (before := before_grid(value, self.grid)) is not None:
            return extended_step(value, before, self.step)
        self.check_step(value)
        if not value.steps:
            later = self.after_row and self.phase(value) is None and value.activation != "sigmoid"
            computed = self.row_above(value) if later else value
            parts = self.columns_by_phase(computed)
            value.steps = tuple(
                ((self.add(computed.part(part) if self.several else computed), later * value.stride, 0), part)
                for part in parts
            )
        identity = self.identity(value.size("c"))
        return Sum(value.layout, {tap: identity[part] for tap, part in value.steps}, stride=value.stride)

    def row_above(self, value: Sum) -> Sum:
        """The value of the row above, 0 in the first row: what looks ahead in its own row is then drawn.

        So a value that depends on all of its own row can be read from the rows below.
        """
        return self.bounded(value.moved(-1, 0), -1)

    def bounded(self, value: Sum, dy: int = 0, dx: int = 0) -> Sum:
        """The value, with biases that are 0 where the position at ``(dy, dx)`` is outside of the grid."""
        inside, taps = (ONES, dy * value.stride, dx * value.stride), dict(value.taps)
        if value.labels is not None:
            zeros = torch.zeros_like(value.labels)
            ones = torch.cat([zeros[:1], zeros[:1] + 1], dim=1)
            layout = ((("c", zeros.shape[1]),),)
            labels = torch.cat([value.labels, zeros], dim=1)
            masked = self.add(
                Sum(layout, {inside: ones}, labels=labels, activation="product", stride=value.stride)
            )
            taps[masked, 0, 0] = self.identity(zeros.shape[1])
        if value.bias is not None:
            taps[inside] = value.bias[None]
        return Sum(value.layout, taps, activation=value.activation, stride=value.stride, node=value.node)

    def add(self, value: Sum) -> int:
        """Appends a step that computes a value, and returns its number. Products with zeros are dropped."""
        width = value.size("c") * (2 if value.activation in PAIRED else 1)
        taps = {tap: matrix for tap, matrix in value.taps.items() if (matrix != 0).any()}
        zeros = torch.zeros(self.num_embeddings, width, dtype=self.dtype, device=self.device)
        value = replace(value, taps=taps or {(CODES, 0, -1): zeros})  # a step has a term
        phase = self.phase(value)
        self.phases.append(Phase.CODE + self.num_codes - 1 if phase is None else phase)
        self.origins.append(value.node or self.node)
        return self.builder.add(
            *self._terms(value),
            width=width,
            bias=None if value.bias is None else value.bias.to(self.dtype),
            label_bias=None if value.labels is None else value.labels.to(self.dtype),
            activation=value.activation,
            stride=value.stride,
        )

    def attention(self, query: Sum, key: Sum, value: Sum, heads: int, scale: float, own: bool) -> Sum:
        """The value of a step that is an attention; its layout is that of ``value``."""
        if max(query.stride, key.stride, value.stride) > 1:
            raise Unsupported("attention of values on a coarser grid than that of the codes")
        sources = [self._step_number(each) for each in (query, key, value)]
        number = self.builder.attend(*sources, heads=heads, scale=scale, own=own)
        self.phases.append(phase_of(self.builder.steps[number], self.phases))
        self.origins.append(self.node)
        return Sum(value.layout, {(number, 0, 0): self.identity(value.size("c"))})

    def _step_number(self, value: Sum) -> int:
        """The number of the step whose value it is; a new step if it is none."""
        if len(value.taps) == 1 and value.activation == "none" and value.bias is value.labels is None:
            ((source, dy, dx), matrix) = next(iter(value.taps.items()))
            if source >= 0 and dy == dx == 0 and is_identity(matrix):
                return source
        return next(iter(self.step(value).taps))[0]

    def _terms(self, value: Sum) -> list[Term]:
        """The terms of a step: one for each source, and one for all maps together."""
        taps: dict[int, dict[tuple[int, int], Tensor]] = {}
        maps: list[tuple[int, Tensor]] = []
        for (source, dy, dx), matrix in sorted(value.taps.items(), key=lambda item: item[0]):
            if source > ONES:
                taps.setdefault(source, {})[dy, dx] = matrix.to(self.dtype)
            elif source == ONES:
                maps.append((self.map_number(Map(-1, (), tap=(dy, dx))), matrix.to(self.dtype)))
            else:
                made = replace(self.maps[FIRST_MAP - source], tap=(dy, dx))
                maps.append((self.map_number(made), matrix.to(self.dtype)))
        terms = []
        for source, matrices in taps.items():
            own = list(matrices) == [(0, 0)] and self.stride_of(source) == value.stride
            if source >= 0 and own and is_identity(matrices[0, 0]):
                terms.append(Term(source))
            else:
                stacked = torch.stack(list(matrices.values()))
                terms.append(Term(source, tuple(matrices), self.builder.keep(stacked)))
        if maps:
            name = self.builder.keep(maps[0][1])  # replaced when all maps are known
            self.map_weights[name] = maps
            terms.append(Term(CONDITION, weight=name))
        return terms
