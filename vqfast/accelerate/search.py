"""What several of the libraries share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.functional import nearest_code, quantize

FEW = 16


def few(x: Tensor, codes: Tensor) -> bool:
    """Whether ``x`` has so few vectors that packing ``codes (..., K, D)`` for them doesn't pay.

    For one vector it takes up to twice the time of the usual search; with K from 1024 on ``FEW`` break even.
    """
    return x.numel() < FEW * codes[..., 0, :].numel()


def straight_through(
    z: Tensor, codes: Tensor, commitment: float, codebook: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``z (B, D, *spatial)`` quantised: the same shape, contiguous, the weighted loss, int64 indices, flat.

    dtypes are those of eager arithmetic between ``z`` and ``codes (K, D)``.
    """
    z = z.to(torch.promote_types(z.dtype, codes.dtype)).contiguous()
    out = quantize(z, codes)
    loss = commitment * out.commitment_loss + codebook * out.codebook_loss
    return out.quantized, loss.to(z.dtype), out.indices.flatten()


def largest_product(x: Tensor, codes: Tensor) -> Tensor:
    """``argmax_k x_n . e_k`` of ``x (..., N, D)`` and ``codes (..., K, D)``: int64 ``(..., N)``.

    With one more channel, 0 in ``x`` and in a code what brings it to the length of the longest, the code of
    the largest product is the nearest one.
    """
    squares = codes.double().square().sum(-1, keepdim=True)
    missing = (squares.amax(-2, keepdim=True) - squares).sqrt().to(codes.dtype)
    return nearest_code(F.pad(x, (0, 1)), torch.cat([codes, missing], -1))
