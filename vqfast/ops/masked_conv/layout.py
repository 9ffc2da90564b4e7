"""Shapes and memory layouts of the masked convolution's outputs, the same for every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops.define import in_functorch

ACTIVATIONS = ("none", "relu", "gate")


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last where ``x`` is and can't be read as contiguous, else contiguous.

    Under ``vmap`` torch offers no other format than contiguous.
    """
    if in_functorch():
        return torch.contiguous_format
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty(x: Tensor, channels: int) -> Tensor:
    """An uninitialised tensor of ``channels`` channels on the grid of ``x``, laid out as ``x``."""
    shape = x.shape[0], channels, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def embedded(indices: Tensor, weight: Tensor) -> Tensor:
    """An uninitialised tensor for the output of ``embed`` of ``indices (B, H, W)``, channels last."""
    shape = len(indices), len(weight), *indices.shape[1:]
    return torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)


def out_channels(weight: Tensor, activation: str) -> int:
    """The number of channels after the activation."""
    return weight.shape[0] // 2 if activation == "gate" else weight.shape[0]


def keeps_sums(activation: str, residual: Tensor | None) -> bool:
    """Whether the activation's gradient needs the sums, because it can't be computed from the output."""
    return activation == "gate" or (activation == "relu" and residual is not None)
