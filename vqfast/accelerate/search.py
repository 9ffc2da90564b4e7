"""What several of the libraries share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.functional import nearest_code, quantize

FEW, FEW_TO_TURN = 16, 128  # vectors
LITTLE = 2**20  # multiplications


def few(x: Tensor, codes: Tensor, little: int | None = None) -> bool:
    """Whether ``x`` has so few vectors, or there is so little to search, that ours doesn't pay.

    Less than ``LITTLE`` (or ``little``) takes no longer than to call ours. ``codes (..., K, D)`` that aren't
    contiguous are copied at each call, for which ``FEW_TO_TURN`` vectors make up.
    """
    rows = x.numel() // codes.shape[-1]
    if rows < (FEW if codes.is_contiguous() else FEW_TO_TURN):
        return True
    return x.numel() * codes.shape[-2] < (LITTLE if little is None else little)


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
