"""Dimensions in another order."""

from __future__ import annotations

from torch import Tensor


def move(x: Tensor, source: int, target: int) -> Tensor:
    """``x.movedim``, by numbers from the front: torch's ONNX exporter by tracing takes no others."""
    return x.movedim(source % x.ndim, target % x.ndim)
