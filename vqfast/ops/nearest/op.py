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


def _batched(info, in_dims, x, *codebook):
    """One search for all samples: their number is the first of the dimensions that the codebooks have too."""
    ndim = x.ndim + (in_dims[0] is None)

    def in_front(tensor: Tensor | None, dim: int | None, ndim: int) -> Tensor | None:
        if tensor is None or dim is None:
            return tensor
        tensor = tensor.movedim(dim, 0)
        return tensor.reshape(len(tensor), *[1] * (ndim - tensor.ndim), *tensor.shape[1:])

    x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    return nearest(x, *map(in_front, codebook, in_dims[1:], (ndim, ndim - 1))), 0


torch.library.register_vmap(nearest, _batched)
