"""Tensors that all ranks of torch.distributed agree on, by all_reduce alone: no size has to be known, so no
rank waits for the host and unequal or empty batches need no special case. Alone each is the identity.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether torch.distributed runs more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many processes torch.distributed runs."""
    return dist.get_world_size() if several() else 1


def total(x: Tensor) -> Tensor:
    """The sum of all ranks' ``x``."""
    if several():
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """Rank 0's ``x``: adding zeros changes no bit, and unlike a broadcast it compiles."""
    return total(x if dist.get_rank() == 0 else torch.zeros_like(x)) if several() else x


def place(size: Tensor) -> tuple[Tensor, Tensor]:
    """Where this rank's ``size`` (int64 scalar) items start in the joined batch, and the size of that."""
    if not several():
        return torch.zeros_like(size), size
    rank = dist.get_rank()
    sizes = total((torch.arange(dist.get_world_size(), device=size.device) == rank) * size)
    return sizes[:rank].sum(), sizes.sum()


def gather(x: Tensor) -> Tensor:
    """All ranks' ``x (N, ...)``, whatever each one's N, one after the other. Waits for the host."""
    if not several():
        return x
    start, size = map(int, place(torch.tensor(len(x), device=x.device)))
    joined = x.new_zeros(size, *x.shape[1:])
    joined[start : start + len(x)] = x
    return total(joined)


def noise(num: int, device: torch.device) -> Tensor:
    """What ``sample`` draws for ``num`` rows."""
    return torch.rand(num + 1, dtype=torch.float64, device=device)


def sample(x: Tensor, mask: Tensor | None, num: int) -> Tensor:
    """``num`` random rows of all ranks' ``x (N, ...)``, the same on all; distinct where there are enough.

    Systematic sampling: rows at equal distances from a random start, in random order. Every row has the same
    chance. Seeded by the first rank's torch generator; one process on the joined batch draws the same rows.

    Args:
        mask: bool ``(N,)``, which rows count.

    Returns:
        ``(num, ...)``; NaN where no rank has a row.
    """
    # shape[0] rather than len, which export would take for a constant
    dims = (-1,) + (1,) * (x.ndim - 1)
    have = torch.full((), x.shape[0], device=x.device) if mask is None else mask.sum()
    start, size = place(have)
    drawn = from_first(noise(num, x.device))
    wanted = ((drawn[:num].argsort() + drawn[num]) * (size.double() / num)).long().clamp(max=size - 1) - start
    picked = x.new_zeros(num, *x.shape[1:])
    if x.shape[0]:
        nth = wanted.clamp(min=0)
        index = nth if mask is None else torch.searchsorted(mask.cumsum(0), nth + 1)
        mine = (wanted >= 0) & (wanted < have)
        picked = torch.where(mine.view(dims), x[index.clamp(max=x.shape[0] - 1)], picked)
    return torch.where(size > 0, total(picked), torch.nan)
