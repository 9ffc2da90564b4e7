"""``vqfast::nearest``: indices of the nearest codes, without gradient: an argmin has none."""

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


def _batched(info, in_dims, x, codebook, lengths=None):
    """One search for all samples: their number is the first of the dimensions that the codebooks have too."""
    x_dim, *dims = in_dims
    ndim = x.ndim + (x_dim is None)

    def in_front(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
        if dim is None:
            return tensor
        tensor = tensor.movedim(dim, 0)
        return tensor.reshape(len(tensor), *[1] * (ndim - tensor.ndim), *tensor.shape[1:])

    x = x.expand(info.batch_size, *x.shape) if x_dim is None else x.movedim(x_dim, 0)
    if lengths is not None:
        lengths = in_front(lengths, dims[1], ndim - 1)
    return nearest(x, in_front(codebook, dims[0], ndim), lengths), 0


torch.library.register_vmap(nearest, _batched)
