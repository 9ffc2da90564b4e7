"""A call of the user's network as a graph of ATen operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

# Frames of these files aren't lines of the user's network: torch, and vqfast's priors and sampling.
_ROOMS = Path(__file__).parents[2]
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(_ROOMS / "sampling"), str(_ROOMS / "priors"))


class _PlainOneHot(TorchFunctionMode):
    """Replaces ``one_hot``, which looks at its input's values, so that no trace can follow it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A comparison with every class in place of ``one_hot``."""
        if func is not F.one_hot:
            return func(*args, **(kwargs or {}))
        return self.one_hot(*args, **(kwargs or {}))

    @staticmethod
    def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
        """See ``torch.nn.functional.one_hot``."""
        if num_classes < 0:
            raise ValueError(
                "num_classes of one_hot is -1; want a number, which no trace can read from codes"
            )
        return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


@torch.inference_mode(False)  # inference mode doesn't decompose composite operations
@torch.no_grad()
def trace(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> fx.Graph:
    """The operations of ``call(*inputs)``; each node has its value as ``meta["val"]``."""
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    def traced(of: Callable[..., Tensor]) -> fx.Graph:
        # The kernels of attention are opaque; its definition has operations that the tracer knows.
        with _PlainOneHot(), sdpa_kernel(SDPBackend.MATH):
            module = make_fx(of, tracing_mode="real", record_stack_traces=True)(*inputs)
        module.graph.owning_module = module
        return module.graph

    graph = traced(call)
    if any(_writes_in_place(node) for node in graph.nodes):  # which the views of its tensor see too
        try:
            return traced(torch.func.functionalize(call))
        except RuntimeError:  # it can't follow every operation; the program will be compared anyway
            pass
    return graph


def _writes_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument; masks that are written into weights are there already."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    written: Any = node.args[0]
    while isinstance(written, fx.Node) and _is_view(written):
        written = written.args[0]
    return not isinstance(written, fx.Node) or written.op != "get_attr"


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value shares the memory of its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None


def constant(node: fx.Node) -> Tensor:
    """The tensor of a ``get_attr`` node: the network's own, with the values that it has now."""
    tensor: Tensor = getattr(node.graph.owning_module, str(node.target))
    return tensor


def constants(graph: fx.Graph) -> list[Tensor]:
    """The network's tensors that the graph reads."""
    return [constant(node) for node in graph.nodes if node.op == "get_attr"]


def needed_by(nodes: list[fx.Node], known: Collection[fx.Node] = ()) -> set[fx.Node]:
    """These nodes and all that they are computed from, as far as it isn't known."""
    needed, stack = set[fx.Node](), list(nodes)
    while stack:
        node = stack.pop()
        if node not in needed and node not in known:
            needed.add(node)
            stack += node.all_input_nodes
    return needed


@torch.inference_mode(False)
@torch.no_grad()
def evaluate(
    nodes: list[fx.Node], inputs: tuple[Tensor | None, ...], given: dict[fx.Node, Tensor] | None = None
) -> list[Tensor]:
    """The values of some nodes for these inputs; ``None`` for inputs that they don't depend on.

    The values of nodes in ``given`` aren't computed but taken from there.
    """
    if not nodes:
        return []
    values: dict[fx.Node, Any] = dict(given or {})
    needed = needed_by(nodes, values)
    placeholders = [node for node in nodes[0].graph.nodes if node.op == "placeholder"]
    for node in nodes[0].graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            values[node] = inputs[placeholders.index(node)]
        elif node.op == "get_attr":
            values[node] = constant(node)
        else:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return [values[node] for node in nodes]


def place(node: fx.Node) -> str:
    """``file:line`` of the user's code that made a node, or the last node before it that has a line."""
    while node.op != "root":
        for frame in reversed(re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")):
            if not frame[0].startswith(_NOT_THE_USERS):
                return ":".join(frame)
        node = node.prev
    return "the network"
