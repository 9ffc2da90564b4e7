"""What the rules work with: the node that is interpreted, and the steps that its values become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, CONDITION, Phase, Term, available
from vqfast.sampling.trace.graph import evaluate
from vqfast.sampling.trace.layout import Layout, Unsupported, by_position, common_layout, shape_of
from vqfast.sampling.trace.values import (
    FIRST_MAP,
    ONES,
    Known,
    Sum,
    broadcast,
    is_identity,
    is_zero_outside,
    selects_channels,
)


@dataclass
class Map:
    """A value that is known from the start and differs by position: channels of the program's condition.

    Attributes:
        index: of the node in its graph that computes it.
        layout: of the node's tensor.
        channels: how many.
        tap: if given, the map isn't a node but 1 where this offset leads to a position inside of the grid,
            and 0 elsewhere.
    """

    index: int
    layout: Layout
    channels: int = 1
    tap: tuple[int, int] | None = None


class Context:
    """The state of a lowering.

    Args:
        graph: of a network's call.
        inputs: the inputs of the trace by name: codes ``(B, H, W)`` or ``(B, T)``, labels, condition.
        num_embeddings: K, the number of codes.
        num_classes: number of labels, or ``None``.
    """

    def __init__(
        self, graph: fx.Graph, inputs: dict[str, Tensor], num_embeddings: int, num_classes: int | None
    ) -> None:
        self.graph, self.inputs = graph, inputs
        self.num_embeddings, self.num_classes = num_embeddings, num_classes or 0
        self.device = inputs["codes"].device
        result: Any = next(reversed(graph.nodes)).args[0]
        self.dtype: torch.dtype = result.meta["val"].dtype
        self.batch, *self.spatial = inputs["codes"].shape
        self.grid = tuple([1, *self.spatial][-2:])
        self.node: Any = next(iter(graph.nodes))  # the node that is interpreted
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
        """Whether the value has one position for each position of the grid."""
        return (value.size("y"), value.size("x")) == self.grid

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
        if table is not None and value.bias is not None and whole and (CODES, 0, 0) in value.taps:
            table = table + value.bias
            value = Sum(value.layout, {(CODES, 0, 0): table})
        if table is not None and value.bias is None and (len(table) <= table.shape[1] or not whole):
            return value
        if selects_channels(value) or not value.taps:
            return value
        if whole and (self.phase(value) is not None or not is_zero_outside(value, offsets)):
            return self.step(value)
        if value.bias is None or not whole:
            zero = value.bias is None and is_zero_outside(value, offsets)
            return value if zero else self.step(value)
        return Sum(value.layout, {**value.taps, (ONES, 0, 0): value.bias[None]})

    def phase(self, value: Sum) -> int | None:
        """When a step of the value could run; ``None`` if never, since it looks ahead."""
        try:
            phases = [available(tap[0], tap[1:], self.phases) for tap in value.taps if tap[0] > ONES]
            return max(phases, default=Phase.ROW)
        except ValueError:
            return None

    def multiplicand(self, value: Sum, width: int) -> Sum:
        """A value that is multiplied by a matrix of ``width`` columns: a step, if that saves products."""
        value = self.linear(value)
        matrices = [matrix for (source, _, _), matrix in value.taps.items() if source != CODES]
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
        if uniform and value.needs == {"labels"}:
            return Sum(layout, {}, labels=self.by_label(value, layout))
        made = Map(list(self.graph.nodes).index(value.node), layout, positions.shape[3])
        return Sum(layout, {(FIRST_MAP - self.map_number(made), 0, 0): self.identity(made.channels)})

    def map_number(self, made: Map) -> int:
        """The number of a map among all; a new one is appended."""
        if made not in self.maps:
            self.maps.append(made)
        return self.maps.index(made)

    def by_label(self, value: Known, layout: Layout) -> Tensor:
        """What a value that depends on labels is for each label, ``(num_classes, columns)``."""
        rows = []
        for first in range(0, self.num_classes, self.batch):
            labels = torch.arange(first, first + self.batch, device=self.device)
            inputs = self.inputs | {"labels": labels.clamp(max=self.num_classes - 1)}
            tensor = evaluate([value.node], tuple(inputs.values()))[0]
            rows.append(by_position(tensor.expand(shape_of(layout)), layout)[:, 0, 0])
        return torch.cat(rows)[: self.num_classes].to(self.dtype)

    # Steps

    def step(self, value: Sum) -> Sum:
        """The value as that of a step, which is zero outside of the grid."""
        if not self.covers_grid(value):
            size = f"{value.size('y')} x {value.size('x')}"
            raise Unsupported(f"{size} values for {' x '.join(map(str, self.grid))} positions")
        if not value.taps:
            raise Unsupported("a value that doesn't depend on the codes after all")
        if value.number is None:
            phase = self.phase(value)
            self.phases.append(Phase.CODE if phase is None else phase)
            value.number = self.builder.add(
                *self._terms(value),
                width=next(iter(value.taps.values())).shape[1],
                bias=None if value.bias is None else value.bias.to(self.dtype),
                label_bias=None if value.labels is None else value.labels.to(self.dtype),
                activation=value.activation,
            )
            self.origins.append(value.node or self.node)
        return Sum(value.layout, {(value.number, 0, 0): self.identity(value.size("c"))})

    def _terms(self, value: Sum) -> list[Term]:
        """The terms of a step: one for each source, and one for all maps together."""
        taps: dict[int, dict[tuple[int, int], Tensor]] = {}
        maps: list[tuple[int, Tensor]] = []
        for (source, dy, dx), matrix in sorted(value.taps.items(), key=lambda item: item[0]):
            if source > ONES:
                taps.setdefault(source, {})[dy, dx] = matrix.to(self.dtype)
            elif source == ONES:
                maps.append((self.map_number(Map(0, (), tap=(dy, dx))), matrix.to(self.dtype)))
            elif (dy, dx) == (0, 0):
                maps.append((FIRST_MAP - source, matrix.to(self.dtype)))
            else:
                raise Unsupported("a value that doesn't depend on the codes, read at another position")
        terms = []
        for source, matrices in taps.items():
            if source >= 0 and list(matrices) == [(0, 0)] and is_identity(matrices[0, 0]):
                terms.append(Term(source))
            else:
                stacked = torch.stack(list(matrices.values()))
                terms.append(Term(source, tuple(matrices), self.builder.keep(stacked)))
        if maps:
            name = self.builder.keep(maps[0][1])  # replaced when all maps are known
            self.map_weights[name] = maps
            terms.append(Term(CONDITION, weight=name))
        return terms
