"""The processes that work together: one alone, or several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vqfast.checks import check_choice
from vqfast.pipeline.failures import ended_by_torchrun, lost_another
from vqfast.pipeline.watch import Watch

LIMIT_SECONDS = 1800.0  # how long a process waits for another until it counts as lost


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together. ``Ranks()`` is one process alone, on the CPU.

    Args:
        rank: the number of this process.
        world: how many there are.
        device: the device of this process.
        watch: tells the user when processes wait for each other.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def works_at(self, label: str) -> None:
        """Notes the work of this process, for the messages about waiting."""
        if self.watch is not None:
            self.watch.label = label

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def meet(self) -> None:
        """Waits for all processes, as long as they work: shares of files may take very different times."""
        if self.watch is not None:
            self.watch.meet()

    def of_first(self, make: Callable[[], str]) -> str:
        """A text that the first process makes for all, however long that takes. All of them must call it."""
        return make() if self.watch is None else self.watch.of_first(make)

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true in any process. All of them must call it."""
        count = torch.tensor(float(value), device=self.device)
        self.add_up([count])
        return bool(count)

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
            for tensor, part in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = Ranks()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end.

    Args:
        device: ``"auto"`` (a GPU where there is one), ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: there is no such device.
        ConnectionError: another process ended; it, or torchrun, says why.
        TimeoutError: another process kept this one waiting for ``LIMIT_SECONDS``.
    """
    check_choice("device", device, ("auto", "cpu", "cuda"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but torch sees no GPU here; want 'cpu'")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic algorithms need
        torch.use_deterministic_algorithms(True, warn_only=True)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        _join("nccl" if device == "cuda" else "gloo")
    watch = Watch() if world > 1 else None
    ranks = Ranks(dist.get_rank() if world > 1 else 0, world, torch.device(device), watch)
    ending = ExitStack()
    try:
        if watch:
            watch.start()
            ending.enter_context(ended_by_torchrun(ranks.rank))
        yield ranks
        ranks.barrier()  # a process that leaves early breaks the others' last message
    except RuntimeError as error:
        if watch and "by peer" in str(error):  # gloo's "Connection closed", or "reset"
            raise lost_another() from error
        if watch and "Timed out" in str(error):
            raise TimeoutError(f"waited {LIMIT_SECONDS / 60:g} minutes {watch.awaited()}") from error
        raise
    finally:
        ending.close()
        if watch:
            watch.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(backend: str) -> None:
    """Joins the process group of this attempt.

    torchrun's store outlives a restart. Under names of their own, the processes of an attempt don't find the
    addresses of those that have ended.
    """
    limit = timedelta(seconds=LIMIT_SECONDS)
    store, rank, world = next(rendezvous("env://", timeout=limit))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
