"""Attention as a step of a program: each position reads all earlier ones, weighted by a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqfast.checks import check_flags, check_integer, check_number


@dataclass(frozen=True)
class Attention:
    """For each head the mean of earlier positions' ``value``, weighted by ``softmax(scale * query . key)``.

    Earlier means earlier in raster order. Each head has an even share of the channels of all three values,
    the first head the first channels. Where there is no earlier position, the value is zero.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1, with a causal mask.

    Args:
        query: the number of an earlier step, read at the position itself.
        key: the number of an earlier step with as many channels as ``query``.
        value: the number of an earlier step with ``width`` channels.
        width: channels of the result.
        heads: divides the channels of key and value.
        scale: what the products of queries and keys are multiplied by.
        own: whether the position itself counts as an earlier one.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: one is out of range, or ``heads`` doesn't divide ``width``.

    >>> Attention(query=0, key=1, value=2, width=8, heads=2, scale=0.5).channels
    8
    """

    query: int
    key: int
    value: int
    width: int
    heads: int = 1
    scale: float = 1.0
    own: bool = False

    # What other steps have and an attention hasn't.
    terms: ClassVar[tuple[()]] = ()
    bias: ClassVar[None] = None
    label_bias: ClassVar[None] = None
    residual: ClassVar[None] = None
    activation: ClassVar[str] = "none"
    stride: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("query", "key", "value"):
            check_integer(name, getattr(self, name), 0)
        check_integer("width", self.width)
        check_integer("heads", self.heads)
        check_number("scale", self.scale)
        check_flags(own=self.own)
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}; want a divisor of {self.width}, the width")

    @property
    def channels(self) -> int:
        """Channels of the step's value."""
        return self.width

    @property
    def sources(self) -> tuple[int, int, int]:
        """The numbers of the steps that it reads."""
        return self.query, self.key, self.value


def attend(step: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The value of an attention at all positions at once.

    Args:
        step: the attention.
        query, key, value: ``(B, N, C)``, the ``N`` positions in raster order.

    Returns:
        ``(B, N, width)``.
    """
    query, key, value = (each.unflatten(2, (step.heads, -1)).transpose(1, 2) for each in (query, key, value))
    count = query.shape[2]
    earlier = torch.ones(count, count, dtype=torch.bool, device=query.device).tril(0 if step.own else -1)
    return weights(step.scale * query @ key.mT, earlier).matmul(value).transpose(1, 2).flatten(2)


def weights(scores: Tensor, earlier: Tensor) -> Tensor:
    """The softmax of ``scores (..., N, N)`` over the last dimension, where ``earlier``; zero elsewhere."""
    return scores.masked_fill(~earlier, -torch.inf).softmax(-1).masked_fill(~earlier, 0)
