"""What every backend of the masked convolution agrees on: the outputs' shapes and memory."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops.define import in_functorch

ACTIVATIONS = ("none", "relu", "gate")


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last where ``x`` is and can't be read as contiguous, else contiguous.

    Under ``vmap`` no other is to be had.
    """
    if in_functorch():
        return torch.contiguous_format
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty(x: Tensor, channels: int) -> Tensor:
    """Room for ``channels`` channels on the grid of ``x``, laid out as ``x``."""
    shape = x.shape[0], channels, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def embedded(codes: Tensor, weight: Tensor) -> Tensor:
    """Room for what codes ``(B, H, W)`` are embedded as, channels last."""
    shape = len(codes), len(weight), *codes.shape[1:]
    return torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)


def out_channels(weight: Tensor, activation: str) -> int:
    """Of the activation's output."""
    return weight.shape[0] // 2 if activation == "gate" else weight.shape[0]


def keeps_sums(activation: str, residual: Tensor | None) -> bool:
    """Whether the activation's gradient needs the sums, because the output doesn't tell."""
    return activation == "gate" or (activation == "relu" and residual is not None)
