"""``vqfast::nearest``: indices of the nearest codes. No gradient: an argmin has none."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops import registry

# Not a ``custom_op``: its layer for gradients takes as long as the search of a few vectors.
torch.library.define("vqfast::nearest", "(Tensor x, Tensor codebook) -> Tensor")


@torch.library.impl("vqfast::nearest", "CompositeExplicitAutograd")
def _(x: Tensor, codebook: Tensor) -> Tensor:
    """``x (..., N, D)``, ``codebook (..., K, D)`` -> int64 ``(..., N)``."""
    return registry.backend("nearest", x, x.shape[-1]).nearest(x, codebook)


@torch.library.register_fake("vqfast::nearest")
def _(x: Tensor, codebook: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


nearest = torch.ops.vqfast.nearest.default
