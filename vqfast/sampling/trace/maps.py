"""Values that are known from the start and differ by position: what a program's condition is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vqfast.sampling import parallel
from vqfast.sampling.trace.graph import evaluate
from vqfast.sampling.trace.layout import Layout, by_position, shape_of


@dataclass
class Map:
    """Channels of a program's condition.

    Attributes:
        index: of the node in its graph that computes it; -1 for a map of ones.
        layout: of the node's tensor, which may have more positions than the grid.
        channels: how many.
        tap: the offset at which it is read. Outside of the tensor it is 0.
        beyond: how many rows and columns more than the grid the tensor has.
        inverse: the values are 1 divided by those of the node.
    """

    index: int
    layout: Layout
    channels: int = 1
    tap: tuple[int, int] = (0, 0)
    beyond: tuple[int, int] = (0, 0)
    inverse: bool = False


def map_of(maps: list[Map], nodes: list[fx.Node], inputs: tuple[Tensor, ...], grid: Sequence[int]) -> Tensor:
    """The condition ``(B, C, H, W)``.

    Args:
        maps: what it is made of.
        nodes: of the network's graph for these inputs.
        inputs: those of the network; codes ``(B, ...)`` first.
        grid: ``(H, W)``.
    """
    batch, (height, width) = len(inputs[0]), grid
    indices = sorted({each.index for each in maps if each.index >= 0})
    values = dict(zip(indices, evaluate([nodes[index] for index in indices], inputs), strict=True))
    parts = []
    for each in maps:
        if each.index < 0:
            part = torch.ones(batch, height, width, 1, device=inputs[0].device)
        else:
            sizes = {"b": batch, "y": height + each.beyond[0], "x": width + each.beyond[1]}
            layout = tuple(tuple((axis, sizes.get(axis, n)) for axis, n in dim) for dim in each.layout)
            part = by_position(values[each.index].expand(shape_of(layout)), layout)
            part = 1 / part if each.inverse else part
            part = F.pad(part, (0, 0, 0, max(0, -each.beyond[1]), 0, max(0, -each.beyond[0])))
        parts.append(parallel.shifted(part, each.tap)[:, :height, :width])
    return torch.cat(parts, dim=3).movedim(3, 1)
