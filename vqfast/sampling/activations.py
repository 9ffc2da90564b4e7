"""The activations of a program's steps: their names, and the function of a step's sums that each is."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

_SINGLE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": Tensor.sigmoid,
    "tanh": Tensor.tanh,
}
_PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gate": lambda a, b: a.tanh() * b.sigmoid(),
    "glu": lambda a, b: a * b.sigmoid(),
    "product": lambda a, b: a * b,
    "norm": lambda a, b: a * b.clamp(min=1).rsqrt(),
}
PAIRED = tuple(_PAIRED)  # functions of two values: the first and the second half of the sums
ACTIVATIONS = (*_SINGLE, *PAIRED)


def channels(width: int, activation: str) -> int:
    """How many channels the value of a step with ``width`` sums has."""
    return width // 2 if activation in PAIRED else width


def activate(sums: Tensor, activation: str) -> Tensor:
    """``(..., width)`` -> ``(..., channels)``."""
    if activation in PAIRED:
        return _PAIRED[activation](*sums.chunk(2, dim=-1))
    return _SINGLE[activation](sums)
