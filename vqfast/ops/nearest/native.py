"""Nearest code on CPUs: ``csrc/nearest/``.

FLOORS for few vectors: one read of the codes, and 2 N K D operations. From nine vectors on these are the
columns of a tile; up to eight are compared with the codes where they are (``csrc/nearest/direct.h``), so
that one vector takes little more than the read: K 1024, D 256, 1 MB, on a core with AVX2 76 us, of which 24
are those of any call. On a core of 450 GFLOP/s in bfloat16, N, K, D = 125, 2048, 256 read 2 MB and take 131
MFLOP, 290 us. Measured: 272 us, as from 96 vectors on int8 comes first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqfast.ops.nearest.reference import divided


def nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """As ``reference.nearest``: by scores with a proven error bound, and where they are close in float64.

    Codes are divided by ``lengths`` a few at a time, so that no divided codebook is held.
    """
    search: Callable[..., Tensor] = torch.ops.vqfast_native.nearest
    if lengths is not None and x.dtype == codebook.dtype == lengths.dtype == torch.float32:
        return search(x, codebook.contiguous(), lengths.contiguous())
    codebook = divided(codebook, lengths)
    if (
        x.dtype == codebook.dtype == torch.float32
    ):  # first, as the conversions below take longer than the search of a vector
        return search(x, codebook.contiguous())
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    if dtype == torch.float64:
        x = x.double()
    return search(x, codebook.to(dtype).contiguous())
