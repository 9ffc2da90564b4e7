"""Tensors that are equal on all ranks of torch.distributed.

Only all_reduce is used. It needs no sizes, so no rank waits for the host, and unequal or empty batches need
no special case. In one process each function returns what it was given.
"""

from __future__ import annotations

from collections.abc import Callable

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
    """The ``x`` of rank 0, as a sum with zeros: exact, and unlike a broadcast it can be compiled."""
    return total(x if dist.get_rank() == 0 else torch.zeros_like(x)) if several() else x


def place(size: Tensor) -> tuple[Tensor, Tensor]:
    """Where this rank's items start in the joined batch, and how many items that has; ``size`` and the
    results are int64 scalars.
    """
    if not several():
        return torch.zeros_like(size), size
    rank = dist.get_rank()
    sizes = total((torch.arange(dist.get_world_size(), device=size.device) == rank) * size)
    return sizes[:rank].sum(), sizes.sum()


def gather(x: Tensor) -> Tensor:
    """The ``x (N, ...)`` of all ranks, one after the other; N may differ. Waits for the host."""
    if not several():
        return x
    start, size = map(int, place(torch.tensor(len(x), device=x.device)))
    joined = x.new_zeros(size, *x.shape[1:])
    joined[start : start + len(x)] = x
    return total(joined)


def noise(num: int, device: torch.device) -> Tensor:
    """The random numbers that ``sample`` draws for ``num`` items."""
    return torch.rand(num + 1, dtype=torch.float64, device=device)


def sample(size: int, mask: Tensor | None, drawn: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
    """``num`` random items of all ranks together, the same on every rank.

    Systematic sampling: items at equal distances from a random start, in random order. Every item has the
    same chance, and the items are distinct where there are enough. The random numbers are those of the first
    rank's torch generator; one process with the joined batch draws the same items.

    Args:
        size: N, the number of this rank's items.
        mask: bool ``(N,)``, which items count.
        drawn: ``noise(num, device)``; the first rank's counts.
        pick: gives the items ``(n, ...)`` of int64 numbers ``(n,)`` in ``0..N - 1``.

    Returns:
        ``(num, ...)``; NaN where no rank has an item.
    """
    num = len(drawn) - 1
    have = torch.full((), size, device=drawn.device) if mask is None else mask.sum()
    start, all_items = place(have)
    drawn = from_first(drawn)
    joined = (drawn[:num].argsort() + drawn[num]) * (all_items.double() / num)
    joined = joined.long().clamp(max=all_items - 1)
    position = joined - start  # among the items of this rank
    nth = position.clamp(min=0)
    numbers = nth if mask is None else torch.searchsorted(mask.cumsum(0), nth + 1)
    if size:
        picked = pick(numbers.clamp(max=size - 1))
    else:
        none = pick(numbers[:0])
        picked = none.new_zeros(num, *none.shape[1:])
    mine = ((position >= 0) & (position < have)).view((-1,) + (1,) * (picked.ndim - 1))
    return torch.where(all_items > 0, total(picked.where(mine, 0)), torch.nan)
