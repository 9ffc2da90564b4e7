"""``vqfast::nearest``: indices of the nearest codes. No gradient: an argmin has none."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.define import define


@define
def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """``x (..., N, D)``, ``codebook (..., K, D)``, divided by ``lengths (..., K)`` -> int64 ``(..., N)``."""
    return registry.backend("nearest", x, x.shape[-1]).nearest(x, codebook, lengths)


@torch.library.register_fake(nearest)
def _(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)
