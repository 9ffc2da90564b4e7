"""Batches that fit: how much memory there is, and how an allocation that fails looks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

# the last is all that torch's stable ABI says of an allocation in C++
_FAILED = re.compile(
    "DefaultCPUAllocator|out of memory|bad_alloc|ALLOC_FAILED|Storage size calculation overflowed"
    '|"aten::empty".*call failed'
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _FAILED.search(str(error)) is not None
    )


def in_batches(work: Callable[[range], Tensor], num: int, batch_size: int) -> Iterator[Tensor]:
    """``work(rows)`` for all of ``0..num - 1``, batch by batch.

    One that doesn't fit the memory is begun again in halves, as are those after it; of one row the error
    stands.
    """
    first = 0
    while first < num:
        rows = range(first, min(num, first + batch_size))
        done = _unless_too_large(work, rows)
        if done is None:
            batch_size = -(-len(rows) // 2)
        else:
            first = rows.stop
            yield done


def _unless_too_large(work: Callable[[range], Tensor], rows: range) -> Tensor | None:
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    return None  # by now the error is gone, and with it what it held


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; infinity where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    system = re.search(r"MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"))
    free = 1024 * int(system[1]) if system else math.inf
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():  # a container's; "max" is none
        cached = re.search(r"inactive_file (\d+)", _text("/sys/fs/cgroup/memory.stat"))
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
