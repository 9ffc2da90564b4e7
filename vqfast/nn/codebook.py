"""How a codebook starts and how it follows its vectors."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vqfast.functional import nearest_code


@torch.no_grad()
def ema_step(
    codebook: Tensor,
    ema_counts: Tensor,
    ema_sums: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
) -> None:
    """One step of the exponential moving average, in place (van den Oord et al. 2017, appendix A.1).

    ``N_k <- g N_k + (1 - g) n_k``, ``m_k <- g m_k + (1 - g) sum z_e``, ``e_k = m_k / N_k`` with the counts
    smoothed to ``(N_k + eps) / (N + K eps) * N``. Under torch.distributed the batch is that of all ranks.

    Args:
        codebook, ema_sums, sums: ``(K, D)``.
        ema_counts, counts: ``(K,)``.
    """
    counts = counts.to(ema_counts.dtype)
    if dist.is_available() and dist.is_initialized():
        counts, sums = counts.clone(), sums.clone()
        dist.all_reduce(counts)
        dist.all_reduce(sums)
    finite = sums.isfinite().all(1)  # a code that got a NaN sits this step out
    counts = torch.where(finite, counts, ema_counts)
    sums = torch.where(finite.unsqueeze(1), sums, ema_sums)
    ema_counts.mul_(decay).add_(counts, alpha=1 - decay)
    ema_sums.mul_(decay).add_(sums, alpha=1 - decay)
    total = ema_counts.sum()
    smoothed = (ema_counts + eps) / (total + len(ema_counts) * eps) * total
    codebook.copy_(ema_sums / smoothed.unsqueeze(1))


@torch.no_grad()
def kmeans(x: Tensor, num_embeddings: int, seed: int = 0, iterations: int = 10) -> Tensor:
    """A codebook fitted to ``x (N, D)`` by Lloyd's algorithm, from distinct random vectors: ``(K, D)``.

    A code that loses all its vectors stays. With fewer than K distinct vectors some codes are doubles.

    Raises:
        ValueError: ``x`` isn't ``(N, D)`` with N, D >= 1, or K is below 1.
    """
    if x.ndim != 2 or x.numel() == 0 or num_embeddings < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, num_embeddings is {num_embeddings}; want (N, D), K >= 1"
        )
    distinct = x.unique(dim=0)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    codebook = distinct[order[torch.arange(num_embeddings) % len(distinct)].to(x.device)]
    for _ in range(iterations):
        indices = nearest_code(x, codebook)
        counts = torch.bincount(indices, minlength=num_embeddings).unsqueeze(1)
        sums = torch.zeros_like(codebook).index_add_(0, indices, x)
        codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)
    return codebook
