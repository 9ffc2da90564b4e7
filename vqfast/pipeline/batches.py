"""Which items make up each batch of a training: by the seed and the step alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

CHANCES = 3  # random numbers that an item is varied by

S = TypeVar("S")
T = TypeVar("T")


def batch_numbers(num: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of ``num`` items make up a step's batch: int64 ``(batch_size,)``.

    Epochs follow each other without a gap, each in an order of its own.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    numbers = torch.empty_like(places)
    for epoch in sorted(set((places // num).tolist())):
        in_epoch = places // num == epoch
        numbers[in_epoch] = _order(num, epoch, seed)[places[in_epoch] % num]
    return numbers


def batch_chances(batch_size: int, step: int, seed: int) -> Tensor:
    """What varies the items of a step's batch: float64 ``(batch_size, CHANCES)``, uniform in [0, 1)."""
    stream = np.random.PCG64([seed, step, batch_size]).random_raw(batch_size * CHANCES)
    return torch.from_numpy((stream >> np.uint64(11)) * 2.0**-53).view(batch_size, CHANCES)


def read_ahead(read: Callable[[S], T], shares: Iterable[S], workers: int) -> Generator[tuple[S, T]]:
    """Reads what belongs to each of ``shares``, in their order.

    Args:
        workers: threads that read up to two shares each ahead; with 0 a share is read when it is asked for.
    """
    if not workers:
        yield from ((share, read(share)) for share in shares)
        return
    pending: deque[tuple[S, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vqfast reader")
    try:
        for share in shares:
            pending.append((share, pool.submit(read, share)))
            if len(pending) > 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def step_seed(seed: int, step: int) -> int:
    """The seed of what is drawn in a step, which therefore is the same in a training that went on."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _order(num: int, epoch: int, seed: int) -> Tensor:
    # torch's generator would look at the low 32 bits of a seed only: too few for both
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(num), kind="stable"))
