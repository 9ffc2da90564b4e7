"""One process, or several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

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
        ConnectionError: another process stopped, and said why.
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
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    ranks = Ranks(dist.get_rank() if world > 1 else 0, world, torch.device(device))
    try:
        yield ranks
        ranks.barrier()  # one that leaves early breaks the others' last message
    except RuntimeError as error:
        if world > 1 and "by peer" in str(error):  # gloo's "Connection closed", or "reset"
            raise ConnectionError("another process stopped; its own error says why") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
