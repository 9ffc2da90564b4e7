"""Lowers a traced graph to the steps of a program: an interpreter over the values of ``values.py``."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from vqfast.sampling.program import CODES, AnyStep, Program
from vqfast.sampling.trace import (  # noqa: F401  they register their rules
    arithmetic,
    attention,
    joining,
    linear,
    norms,
    shapes,
    strides,
)
from vqfast.sampling.trace.context import Context
from vqfast.sampling.trace.fuse import NotCausal, check_causal, fuse_steps
from vqfast.sampling.trace.graph import constant, needed_by, place
from vqfast.sampling.trace.layout import Layout, Unsupported, common_layout, shape_of
from vqfast.sampling.trace.maps import Map
from vqfast.sampling.trace.rules import OF_SHAPE, RULES
from vqfast.sampling.trace.tables import in_tables
from vqfast.sampling.trace.values import Known, Sum, by_code, selects_channels


@dataclass
class Lowered:
    """A program, its weights, and what its condition is made of."""

    program: Program
    weights: dict[str, Tensor]
    maps: list[Map]


def lowered(
    graph: fx.Graph,
    inputs: dict[str, Tensor],
    num_embeddings: int,
    num_classes: int | None,
    num_quantizers: int | None,
    num_mixtures: int | None,
    lead: int,
) -> Lowered:
    """The program of a graph; arguments as those of ``Lowering``.

    Raises:
        NotCausal, ValueError: see ``Lowering.run``.
    """
    sizes = num_embeddings, num_classes, num_quantizers, num_mixtures
    try:
        return Lowering(graph, inputs, *sizes, lead).run()
    except NotCausal as error:  # unless it looks ahead only in rows that are drawn when it is read
        try:
            return Lowering(graph, inputs, *sizes, lead, after_row=True).run()
        except ValueError:
            raise error from None


class Unknown:
    """The result of an operation that isn't supported."""


class Lowering(Context):
    """Interprets a graph node by node.

    Args:
        graph, inputs, num_embeddings, num_classes, num_quantizers, after_row: see ``Context``.
        num_mixtures: M, if the result is the parameters of mixtures, ``3 M`` channels; ``None`` for logits.
        lead: by how many columns logits precede the code that they are for.
    """

    def __init__(
        self,
        graph: fx.Graph,
        inputs: dict[str, Tensor],
        num_embeddings: int,
        num_classes: int | None,
        num_quantizers: int | None,
        num_mixtures: int | None,
        lead: int,
        after_row: bool = False,
    ) -> None:
        super().__init__(graph, inputs, num_embeddings, num_classes, num_quantizers, after_row)
        self.num_mixtures, self.lead = num_mixtures or 0, lead
        self.problems: dict[str, None] = {}

    def run(self) -> Lowered:
        """The program.

        Raises:
            NotCausal: the network sees later codes.
            ValueError: the network does what no program can; the message lists all of it.
        """
        used = needed_by(list(self.graph.nodes)[-1:])
        for node in self.graph.nodes:
            self.node = node
            try:
                self.values[node] = self._interpret(node)
            except Unsupported as reason:
                if node in used:
                    self.problems[f"{place(node)}: {reason}"] = None
                self.values[node] = Unknown()
        if self.problems:
            raise ValueError("no sampling program can do this:\n  " + "\n  ".join(self.problems))
        steps, origins = fuse_steps(self.builder, self.origins, self.num_codes)
        check_causal(steps, origins, self.num_codes)
        program = Program(tuple(steps), self.num_embeddings, self.num_codes, self.num_mixtures)
        return Lowered(program, self._weights(steps), self.maps)

    def _interpret(self, node: Any) -> Any:
        """The value of a node."""
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return Known(constant(node), frozenset(), node)
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Unknown) for leaf in leaves):
            return Unknown()
        if node.op == "output":
            return self._finish(args[0])
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported("random numbers, as those of dropout in training mode; call .eval() first")
        if any(isinstance(leaf, attention.Scores) for leaf in leaves):
            return self._shared(node, attention.derived(self, args, leaves))
        if not any(isinstance(leaf, Sum) for leaf in leaves):
            return self._known(node, leaves)
        if node.target is operator.getitem:
            return self._shared(node, args[0][args[1]])
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
                raise Unsupported(f"{name} of a value that depends on the codes")
            try:
                value = rule(self, *args, **kwargs)
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise Unsupported(f"{name} with such arguments: {type(error).__name__}: {error}") from error
        if in_place:
            self.values[node.args[0]] = value
        return self._shared(node, value)

    def _input(self, node: Any) -> Known | Sum:
        """The value of an input of the network."""
        name, value = list(self.inputs.items())[len(self.values)]
        if name != "codes":
            return Known(value, frozenset({name}), node)
        axes = ("b", *"yx"[-len(self.spatial) :], *"c" * self.several)
        layout = tuple(((axis, n),) for axis, n in zip(axes, value.shape, strict=True))
        table = torch.arange(self.num_embeddings, device=self.device)[:, None].expand(-1, self.num_codes)
        return Sum(layout, by_code(table, (0, 0), CODES - torch.arange(self.num_codes)))

    def _known(self, node: Any, leaves: list[Any]) -> Known:
        """The value of a node that doesn't depend on the codes."""
        needs = frozenset[str]().union(*(leaf.needs for leaf in leaves if isinstance(leaf, Known)))
        args, kwargs = map_arg((node.args, node.kwargs), lambda arg: self.values[arg].value)
        return Known(node.target(*args, **kwargs), needs, node)

    def _shared(self, node: fx.Node, value: Any) -> Any:
        """The value of a node; as a step if several operations read it, so that it is computed once."""
        if not isinstance(value, Sum):
            return value
        value.node = value.node or node
        users = [user for user in node.users if user.target is not operator.getitem]
        if len(users) < 2 or not self.covers_grid(value):
            return value
        cheap = value.code_table() is not None or selects_channels(value) or value.activation != "none"
        return value if cheap else self.step(value)

    def _finish(self, value: Any) -> None:
        """Makes the last step from the network's result."""
        channels = 3 * self.num_mixtures or self.num_embeddings
        shape = (self.batch, channels, *self.spatial, *[self.num_codes] * self.several)
        if not isinstance(value, Sum):
            raise Unsupported("the result isn't a tensor that depends on the codes")
        axes = ("b", "c", *"yx"[-len(self.spatial) :], *"c" * self.several)
        layout: Layout = tuple(((axis, n),) for axis, n in zip(axes, shape, strict=True))
        got = shape_of(value.layout)
        if got != shape or common_layout([value.layout, layout], shape) != layout:
            raise Unsupported(f"the result has shape {got}; want {shape}")
        logits = self.linear(value).moved(0, -self.lead)
        self.check_step(logits)
        for columns in torch.arange(logits.size("c")).view(-1, self.num_codes).unbind(1):
            self.add(logits.part(columns))

    def _weights(self, steps: list[AnyStep]) -> dict[str, Tensor]:
        """The weights that the steps name; weights of maps have rows for the channels of all maps."""
        named = {term.weight for step in steps for term in step.terms}
        named |= {name for step in steps for name in (step.bias, step.label_bias)}
        weights = {name: weight for name, weight in self.builder.weights.items() if name in named}
        channels = [made.channels for made in self.maps]
        for name in self.map_weights.keys() & weights.keys():
            rows = [weights[name].new_zeros(n, weights[name].shape[1]) for n in channels]
            for number, matrix in self.map_weights[name]:
                rows[number] += matrix
            weights[name] = torch.cat(rows)[None]
        return weights
