"""What replaced methods of several libraries share: when a call is worth it, and the search itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.functional import nearest_code, quantize

MIN_WORK = 2**20  # multiplications of a search that is worth it
FEW_CODES, WIDE_VECTORS = 512, 512  # below and from which a single vector isn't searched on a CPU


def too_small(x: Tensor, codebook: Tensor) -> bool:
    """Whether a step on vectors ``x (..., D)`` and ``codebook (..., K, D)`` is faster by the library's code.

    Gradients cost an op more here, and a codebook that isn't contiguous a copy, which larger searches repay.
    """
    work = x.numel() * codebook.size(-2)
    if work < MIN_WORK or work >= 32 * MIN_WORK:  # decided already: small calls feel each further question
        return work < MIN_WORK
    return work < MIN_WORK * (8 if torch.is_grad_enabled() else 1) * (1 if codebook.is_contiguous() else 4)


def too_small_to_search(x: Tensor, codebook: Tensor) -> bool:
    """``too_small`` for a search without gradients.

    On a CPU, one vector is enough, unless codes are few and wide.
    """
    if x.is_cpu and (codebook.size(-1) < WIDE_VECTORS or codebook.size(-2) >= FEW_CODES):
        return False
    return too_small(x, codebook)


def straight_through(
    z_e: Tensor, codebook: Tensor, commitment_weight: float, codebook_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises ``z_e (B, D, *spatial)`` with ``codebook (K, D)`` and a straight-through gradient.

    Returns:
        The quantised vectors in the shape of ``z_e``, contiguous; the weighted loss; int64 indices ``(N,)``.
        Dtypes are those of eager arithmetic between the two inputs.
    """
    z_e = z_e.to(torch.promote_types(z_e.dtype, codebook.dtype)).contiguous()
    out = quantize(z_e, codebook)
    loss = commitment_weight * out.commitment_loss + codebook_weight * out.codebook_loss
    return out.quantized, loss.to(z_e.dtype), out.indices.flatten()


def largest_product(x: Tensor, codebook: Tensor) -> Tensor:
    """``argmax_k x_n . e_k`` of ``x (..., N, D)`` and ``codebook (..., K, D)``: int64 ``(..., N)``.

    It is a search of nearest codes with one channel more: 0 in ``x``, and in each code vector the value that
    makes it as long as the longest one.
    """
    squares = codebook.double().square().sum(-1, keepdim=True)
    missing = (squares.amax(-2, keepdim=True) - squares).sqrt().to(codebook.dtype)
    return nearest_code(F.pad(x, (0, 1)), torch.cat([codebook, missing], -1))
