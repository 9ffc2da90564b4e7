"""Nearest code on CPUs: ``csrc/nearest/``.

FLOORS (one core, 450 GFLOP/s in bfloat16, of few vectors): one pass over the codes, and 2 N K D operations.
N, K, D = 125, 2048, 256: 2 MB and 131 MFLOP, 290 us; measured 272, as 96 vectors
and more go through int8 first. One vector counts as 16: they are the tile's columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops.nearest.reference import divided


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """As ``reference.nearest``: float32 scores with a proven error bound, close ones settled in float64.

    No divided codes are held.
    """
    if lengths is not None and x.dtype == codebook.dtype == lengths.dtype == torch.float32:
        return torch.ops.vqfast_native.nearest(x, codebook.contiguous(), lengths.contiguous())
    codebook = divided(codebook, lengths)
    if x.dtype == codebook.dtype == torch.float32:  # of few vectors the questions below take longest
        return torch.ops.vqfast_native.nearest(x, codebook.contiguous())
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    if dtype == torch.float64:
        x = x.double()
    return torch.ops.vqfast_native.nearest(x, codebook.to(dtype).contiguous())
