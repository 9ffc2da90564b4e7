"""Counter-based noise: what a draw gets depends on seed, sample number, position and category alone.

So sample ``i`` of seed ``s`` is the same alone, in any batch, on any rank, device and executor.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").

    Args:
        counter: four int64 tensors of 32-bit words, of shapes that broadcast.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64-bit products; int64 wraps and keeps their bits
        c0, c1, c2, c3 = (
            (p1 >> 32 & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> 32 & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def gumbel(seed: int, numbers: Tensor, positions: Tensor, num_embeddings: int) -> Tensor:
    """Standard Gumbel noise ``-log(-log u)``, ``u = (word + 1/2) / 2^32``.

    The word of category ``k`` is output ``k % 4`` of the counter ``(k // 4, position, number's low word,
    number's high word)`` under the key ``(seed's low word, seed's high word)``.

    Args:
        seed: in ``0..2^64 - 1``.
        numbers: int64 ``(B,)``, which sample of the seed each row is.
        positions: int64 ``(P,)``, raster positions.

    Returns:
        float64 ``(B, P, K)``: wide enough for every executor to get the same noise.
    """
    numbers = numbers.view(-1, 1, 1)
    groups = torch.arange(-(-num_embeddings // 4), device=numbers.device)
    counter = (groups, positions.view(-1, 1), numbers & _MASK, numbers >> 32 & _MASK)
    words = torch.stack(philox(counter, (seed & _MASK, seed >> 32)), dim=-1)
    uniform = (words.flatten(-2)[..., :num_embeddings].double() + 0.5) * 2.0**-32
    return uniform.log_().neg_().log_().neg_()
