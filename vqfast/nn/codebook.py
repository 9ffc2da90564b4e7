"""The codebook's EMA learning rule."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
    ema_counts.mul_(decay).add_(counts, alpha=1 - decay)
    ema_sums.mul_(decay).add_(sums, alpha=1 - decay)
    total = ema_counts.sum()
    smoothed = (ema_counts + eps) / (total + len(ema_counts) * eps) * total
    codebook.copy_(ema_sums / smoothed.unsqueeze(1))
