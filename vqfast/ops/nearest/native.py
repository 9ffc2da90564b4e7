"""Nearest code on CPUs: ``csrc/nearest.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """As ``reference.nearest``: float32 scores with a proven error bound, close ones settled in float64."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    if dtype == torch.float64:
        x = x.double()
    return torch.ops.vqfast_native.nearest(x, codebook.to(dtype).contiguous())
