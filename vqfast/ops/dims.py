"""Tensors with their dimensions in another order."""

from __future__ import annotations

from torch import Tensor


def move(x: Tensor, source: int, target: int) -> Tensor:
    """``x.movedim(source, target)``; negative dimensions work in torch's ONNX exporter by tracing too."""
    return x.movedim(source % x.ndim, target % x.ndim)
