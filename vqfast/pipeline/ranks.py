"""One process, or several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vqfast.pipeline.watch import Watch

LIMIT_SECONDS = 1800.0  # of waiting for another process, until it counts as lost


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, its device, and what watches over the waiting of several."""

    rank: int
    world: int
    device: torch.device
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def begin(self, label: str) -> None:
        """Notes what this process works at."""
        if self.watch is not None:
            self.watch.label = label

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in one message a dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([t.flatten() for t in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did, and leaves them.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: there is no such device.
        ConnectionError: another process ended, and said why.
        TimeoutError: another process came to no message for ``LIMIT_SECONDS``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; want auto, cpu or cuda")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no GPU here")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism asks for
        torch.use_deterministic_algorithms(True, warn_only=True)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        limit = timedelta(seconds=LIMIT_SECONDS)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=limit)
    watch = Watch() if world > 1 else None
    ranks = Ranks(dist.get_rank() if world > 1 else 0, world, torch.device(device), watch)
    try:
        if watch:
            watch.start()
        yield ranks
        ranks.barrier()  # one that leaves early breaks the others' last message
    except RuntimeError as error:
        if watch and "by peer" in str(error):  # gloo's "Connection closed", or "reset"
            raise ConnectionError("another process stopped; its own error says why") from error
        if watch and "Timed out" in str(error):
            raise TimeoutError(f"waited {LIMIT_SECONDS / 60:g} minutes {watch.awaited()}") from error
        raise
    finally:
        if watch:
            watch.end()
        if dist.is_initialized():
            dist.destroy_process_group()
