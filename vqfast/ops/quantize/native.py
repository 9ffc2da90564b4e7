"""The training step on CPUs: the native search; what follows it is the definition's, not yet fused."""

from __future__ import annotations

from torch import Tensor

from vqfast.ops.nearest.native import nearest
from vqfast.ops.quantize.reference import follow, quantize_backward

__all__ = ["quantize", "quantize_backward"]


def quantize(
    z_e: Tensor, codebook: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.quantize``."""
    indices = nearest(z_e.movedim(channel_dim, -1), codebook)
    return follow(z_e, codebook, indices, channel_dim, statistics)
