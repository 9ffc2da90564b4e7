"""From a traced graph to the steps of a program: an interpreter over ``values.py``."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import (
    CODES,
    CONDITION,
    Phase,
    Program,
    Step,
    Term,
    available,
)
from vqfast.sampling.trace import arithmetic, shapes  # noqa: F401, whose rules are in the table
from vqfast.sampling.trace.fuse import check_causal, fused
from vqfast.sampling.trace.graph import constant, evaluate, place
from vqfast.sampling.trace.rules import OF_SHAPE, RULES
from vqfast.sampling.trace.tables import in_tables
from vqfast.sampling.trace.values import (
    FIRST_MAP,
    ONES,
    Grid,
    Known,
    Layout,
    Unsupported,
    by_position,
    common,
    composes,
    is_choice,
    is_one,
    shape_of,
    spread,
)


@dataclass
class Map:
    """A known value that differs from place to place: channels of the program's conditioning map."""

    index: int  # of the node in its graph
    layout: Layout
    channels: int = 1
    tap: tuple[int, int] | None = None  # in place of a node: one where that tap is inside of the grid


@dataclass
class Lowered:
    """A program, its weights, and what its conditioning map is made of."""

    program: Program
    weights: dict[str, Tensor]
    maps: list[Map]


class Unknown:
    """What comes of an operation that isn't supported."""


class Lowering:
    """Reads a graph, node by node.

    Args:
        graph: of a network's call.
        inputs: those that it was traced with, by name, in order: codes ``(B, H, W)`` or ``(B, T)``, labels,
            condition.
        num_embeddings, num_classes: how many codes and labels there are.
        behind: by how many columns the logits stand before the code that they are for.
    """

    def __init__(
        self,
        graph: fx.Graph,
        inputs: dict[str, Tensor],
        num_embeddings: int,
        num_classes: int | None,
        behind: int,
    ) -> None:
        self.graph, self.inputs = graph, inputs
        self.num_embeddings, self.num_classes = num_embeddings, num_classes or 0
        self.device, self.behind = inputs["codes"].device, behind
        self.dtype: torch.dtype = next(reversed(graph.nodes)).args[0].meta["val"].dtype
        self.batch, *self.spatial = inputs["codes"].shape
        self.grid = tuple([1, *self.spatial][-2:])
        self.builder = ProgramBuilder()
        self.places: list[fx.Node] = []  # of the steps
        self.phases: list[Phase] = []
        self.maps: list[Map] = []
        self.of_maps: dict[str, list[tuple[int, Tensor]]] = {}  # weights that multiply maps
        self.problems: dict[str, None] = {}
        self.values: dict[fx.Node, Any] = {}
        self.node: Any = next(iter(graph.nodes))  # that is read

    def run(self) -> Lowered:
        """The program.

        Raises:
            NotCausal: the network sees what comes later.
            ValueError: it does what no program can; all of that is listed.
        """
        for node in self.graph.nodes:
            self.node = node
            try:
                self.values[node] = self.value(node)
            except Unsupported as reason:
                self.problems[f"{place(node)}: {reason}"] = None
                self.values[node] = Unknown()
        if self.problems:
            raise ValueError("no sampling program can do this:\n  " + "\n  ".join(self.problems))
        steps, places = fused(self.builder, self.places)
        check_causal(steps, places)
        return Lowered(Program(tuple(steps), self.num_embeddings), self.weights(steps), self.maps)

    # Nodes

    def value(self, node: Any) -> Any:
        """What a node is of the codes."""
        if node.op == "placeholder":
            return self.input(node)
        if node.op == "get_attr":
            return Known(constant(node), frozenset(), node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Unknown) for leaf in leaves):
            return Unknown()
        if node.op == "output":
            return self.logits(args[0])
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported("noise of its own, as of dropout in training mode; call .eval() first")
        if not any(isinstance(leaf, Grid) for leaf in leaves):
            return self.known(node, leaves)
        if node.target is operator.getitem:
            return self.shared(node, args[0][args[1]])
        name = node.target.overloadpacket.__name__
        if name in OF_SHAPE:
            like = node.args[0].meta["val"]
            tensor = torch.zeros(like.shape, dtype=like.dtype, device=self.device)
            return Known(node.target(tensor, *args[1:], **kwargs), frozenset(), node)
        in_place = name.endswith("_") and not name.endswith("__")
        value = None
        if torch.Tag.pointwise in node.target.tags:
            value = in_tables(self, node.target, args, kwargs)
        if value is None:
            rule = RULES.get(name.removesuffix("_") if in_place else name)
            if rule is None:
                raise Unsupported(f"{name} of what depends on the codes")
            value = rule(self, *args, **kwargs)
        if in_place:
            self.values[node.args[0]] = value
        return self.shared(node, value)

    def input(self, node: Any) -> Known | Grid:
        """A placeholder: the codes, or what is known from the start."""
        name, value = list(self.inputs.items())[len(self.values)]
        if name != "codes":
            return Known(value, frozenset({name}), node)
        axes = ("b", "y", "x") if value.ndim == 3 else ("b", "x")
        layout = tuple(((axis, n),) for axis, n in zip(axes, value.shape, strict=True))
        return Grid(layout, {(CODES, 0, 0): torch.arange(self.num_embeddings, device=self.device)[:, None]})

    def known(self, node: Any, leaves: list[Any]) -> Known:
        """A node that doesn't depend on the codes, computed as it is."""
        needs = frozenset().union(*(leaf.needs for leaf in leaves if isinstance(leaf, Known)))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg: self.values[arg].value)
        return Known(node.target(*args, **kwargs), needs, node)

    def shared(self, node: fx.Node, value: Any) -> Any:
        """What several operations read is a step, so that it is computed once."""
        if not isinstance(value, Grid):
            return value
        value.node = value.node or node
        users = [user for user in node.users if user.target is not operator.getitem]
        if len(users) < 2 or not self.is_whole(value):
            return value
        free = value.own() is not None or is_choice(value) or value.activation != "none"
        return value if free else self.step(value)

    # Values

    def shape(self) -> tuple[int, ...]:
        """Of the node that is read."""
        return tuple(self.node.meta["val"].shape)

    def layout(self, *values: Any) -> Layout:
        """Of the node that is read, whose operands broadcast."""
        return common([value.layout for value in values if isinstance(value, Grid)], self.shape())

    def is_whole(self, grid: Grid) -> bool:
        """Whether it has a value for each position of the grid."""
        return (grid.size("y"), grid.size("x")) == self.grid

    def plain(self, grid: Grid) -> Grid:
        """A grid without an activation to come."""
        return grid if grid.activation == "none" else self.step(grid)

    def source(self, grid: Grid, offsets: list[tuple[int, int]]) -> Grid:
        """A value that is zero outside of the grid, for the offsets at which it is read.

        Channels of steps and tables of codes are that. Anything else becomes a step; but where its own
        position would see a later one, it stays a sum that is read elsewhere.
        """
        grid, own = self.plain(grid), grid.own()
        if own is not None and grid.bias is None and (len(own) <= own.shape[1] or not self.is_whole(grid)):
            return grid
        if is_choice(grid) or not grid.taps:
            return grid
        if self.is_whole(grid) and (self.phase(grid) is not None or not composes(grid, offsets)):
            return self.step(grid)
        if grid.bias is None or not self.is_whole(grid):
            return grid if grid.bias is None and composes(grid, offsets) else self.step(grid)
        return Grid(grid.layout, {**grid.taps, (ONES, 0, 0): grid.bias[None]})

    def phase(self, grid: Grid) -> Phase | None:
        """When a step of a grid could run; ``None``: never, since it looks ahead."""
        try:
            taps = [available(key[0], key[1:], self.phases) for key in grid.taps if key[0] >= CODES]
            return max(taps, default=Phase.ROW)
        except ValueError:
            return None

    def factor(self, grid: Grid, width: int) -> Grid:
        """A grid that is multiplied at its own position: a step first, where that saves products."""
        grid = self.plain(grid)
        matrices = [matrix for (source, _, _), matrix in grid.taps.items() if source != CODES]
        at_once = sum(len(matrix) * width for matrix in matrices)
        first = sum(matrix.numel() for matrix in matrices if not is_one(matrix))
        return grid if at_once <= first + grid.size("c") * width else self.source(grid, [])

    def one(self, count: int) -> Tensor:
        """The matrix that changes nothing."""
        return torch.eye(count, dtype=self.dtype, device=self.device)

    def lift(self, value: Known | Grid | float, layout: Layout) -> Grid:
        """A value as a grid of that layout, to which it broadcasts."""
        if isinstance(value, Grid):
            return spread(self.plain(value), layout)
        if not isinstance(value, Known):
            value = Known(torch.tensor(value, dtype=torch.float64, device=self.device), frozenset())
        places = by_position(value.value.expand(shape_of(layout)), layout)
        even = bool((places == places[:, :1, :1]).all())
        if even and not value.needs and (places == places[:1]).all():
            return Grid(layout, {}, places[0, 0, 0].to(self.dtype))
        if even and value.needs == {"labels"}:
            return Grid(layout, {}, labels=self.by_label(value, layout))
        made = Map(list(self.graph.nodes).index(value.node), layout, places.shape[3])
        return Grid(layout, {(FIRST_MAP - self.number(made), 0, 0): self.one(made.channels)})

    def number(self, made: Map) -> int:
        """Of a map, among all."""
        if made not in self.maps:
            self.maps.append(made)
        return self.maps.index(made)

    def by_label(self, value: Known, layout: Layout) -> Tensor:
        """A known value for each label, ``(num_classes, columns)``."""
        rows = []
        for first in range(0, self.num_classes, self.batch):
            labels = torch.arange(first, first + self.batch, device=self.device)
            inputs = self.inputs | {"labels": labels.clamp(max=self.num_classes - 1)}
            tensor = evaluate([value.node], tuple(inputs.values()))[0]
            rows.append(by_position(tensor.expand(shape_of(layout)), layout)[:, 0, 0])
        return torch.cat(rows)[: self.num_classes].to(self.dtype)

    # Steps

    def step(self, grid: Grid) -> Grid:
        """A grid as the value of a step, which is zero outside of the grid."""
        if not self.is_whole(grid):
            size = f"{grid.size('y')} x {grid.size('x')}"
            raise Unsupported(f"{size} values of {' x '.join(map(str, self.grid))} positions")
        if not grid.taps:
            raise Unsupported("a value that doesn't depend on the codes after all")
        if grid.number is None:
            phase = self.phase(grid)
            self.phases.append(Phase.CODE if phase is None else phase)
            grid.number = self.builder.add(
                *self.terms(grid),
                width=next(iter(grid.taps.values())).shape[1],
                bias=None if grid.bias is None else grid.bias.to(self.dtype),
                label_bias=None if grid.labels is None else grid.labels.to(self.dtype),
                activation=grid.activation,
            )
            self.places.append(grid.node or self.node)
        return Grid(grid.layout, {(grid.number, 0, 0): self.one(grid.size("c"))})

    def terms(self, grid: Grid) -> list[Term]:
        """The terms of a step, one for each source; the maps are one."""
        taps: dict[int, dict[tuple[int, int], Tensor]] = {}
        maps: list[tuple[int, Tensor]] = []
        for (source, dy, dx), matrix in sorted(grid.taps.items(), key=lambda item: item[0]):
            if source >= CODES:
                taps.setdefault(source, {})[dy, dx] = matrix.to(self.dtype)
            elif source == ONES:
                maps.append((self.number(Map(0, (), tap=(dy, dx))), matrix.to(self.dtype)))
            elif (dy, dx) == (0, 0):
                maps.append((FIRST_MAP - source, matrix.to(self.dtype)))
            else:
                raise Unsupported("a map that is known from the start, at another position than its own")
        terms = []
        for source, matrices in taps.items():
            if source >= 0 and list(matrices) == [(0, 0)] and is_one(matrices[0, 0]):
                terms.append(Term(source))
            else:
                stacked = torch.stack(list(matrices.values()))
                terms.append(Term(source, tuple(matrices), self.builder.keep(stacked)))
        if maps:
            name = str(self.builder.keep(maps[0][1]))  # until all maps are known
            self.of_maps[name] = maps
            terms.append(Term(CONDITION, weight=name))
        return terms

    def logits(self, value: Any) -> None:
        """The last step, from what the network returns."""
        shape = (self.batch, self.num_embeddings, *self.spatial)
        if not isinstance(value, Grid):
            raise Unsupported("the result isn't a tensor that depends on the codes")
        layout = tuple(
            ((axis, n),) for axis, n in zip(("b", "c", "y", "x")[: len(shape)], shape, strict=True)
        )
        if self.inputs["codes"].ndim == 2:
            layout = (*layout[:-1], (("x", shape[-1]),))
        if shape_of(value.layout) != shape or common([value.layout, layout], shape) != layout:
            got = shape_of(value.layout)
            raise Unsupported(f"the result has shape {got}; want (B, num_embeddings, *shape), here {shape}")
        self.step(self.plain(value).moved(0, -self.behind))

    def weights(self, steps: list[Step]) -> dict[str, Tensor]:
        """What the steps name; what multiplies maps, with the rows of all of them."""
        named = {term.weight for step in steps for term in step.terms}
        named |= {name for step in steps for name in (step.bias, step.label_bias)}
        weights = {name: weight for name, weight in self.builder.weights.items() if name in named}
        channels = [made.channels for made in self.maps]
        for name in self.of_maps.keys() & weights.keys():
            rows = [weights[name].new_zeros(n, weights[name].shape[1]) for n in channels]
            for number, matrix in self.of_maps[name]:
                rows[number] += matrix
            weights[name] = torch.cat(rows)[None]
        return weights
