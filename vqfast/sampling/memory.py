"""Batches that fit the memory: how much is free, and what to do when an allocation fails."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

# The last alternative is the only message that torch's stable ABI gives for an allocation in C++.
_FAILED = re.compile(
    "DefaultCPUAllocator|out of memory|bad_alloc|ALLOC_FAILED|Storage size calculation overflowed"
    '|"aten::empty".*call failed'
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on any device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _FAILED.search(str(error)) is not None
    )


def in_batches(work: Callable[[range], T], num: int, batch_size: int) -> Iterator[T]:
    """Yields ``work(samples)`` for the samples ``0..num - 1``, batch by batch.

    If a batch doesn't fit the memory, it is tried again at half its size, which later batches keep.

    Raises:
        MemoryError, RuntimeError: a single sample doesn't fit the memory.
    """
    first = 0
    while first < num:
        samples = range(first, min(num, first + batch_size))
        done = _unless_too_large(work, samples)
        if done is None:
            batch_size = -(-len(samples) // 2)
        else:
            first = samples.stop
            yield done


def _unless_too_large(work: Callable[[range], T], samples: range) -> T | None:
    """``work(samples)``; ``None`` if several samples didn't fit the memory."""
    try:
        return work(samples)
    except (MemoryError, RuntimeError) as error:
        if len(samples) == 1 or not out_of_memory(error):
            raise
    return None  # after the except clause, where the error and the tensors that it held are freed


def free_memory(device: torch.device) -> float:
    """How many bytes can still be allocated; infinity if the system doesn't say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    system = re.search(r"MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"))
    free = 1024 * int(system[1]) if system else math.inf
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():  # of a container; "max" means no limit
        cached = re.search(r"inactive_file (\d+)", _text("/sys/fs/cgroup/memory.stat"))
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return free


def _text(path: str) -> str:
    """The text of a file; empty if it can't be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
