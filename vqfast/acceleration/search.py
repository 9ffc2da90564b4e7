"""What several of the libraries share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.functional import nearest_code, quantize

FEW, WIDE = 512, 512  # codes, channels
LITTLE = 2**20  # multiplications


def little(x: Tensor, codes: Tensor) -> bool:
    """Whether ``x`` and ``codes (..., K, D)`` are so little that a step takes longer by ours.

    Gradients take another op, and codes that aren't contiguous a copy: so much more has to make up for them.
    """
    work = x.numel() * codes.size(-2)
    if work < LITTLE or work >= 32 * LITTLE:  # at once, where a call takes no longer than the questions
        return work < LITTLE
    return work < LITTLE * (8 if torch.is_grad_enabled() else 1) * (1 if codes.is_contiguous() else 4)


def little_to_search(x: Tensor, codes: Tensor) -> bool:
    """The same of a search alone: on a CPU, one vector is enough unless the codes are few and wide."""
    if x.is_cpu and (codes.size(-1) < WIDE or codes.size(-2) >= FEW):
        return False
    return little(x, codes)


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
