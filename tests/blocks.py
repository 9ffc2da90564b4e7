"""Triton's interpreter with each block of a launch in a thread of its own, so that blocks can meet.

Triton runs the blocks of a launch one after the other: a block that waits for a later one would wait forever.
Here they run at the same time, and Python switches between them after almost every instruction. Memory is
sequentially consistent, which a GPU's isn't: that releases and acquires are in their places is for the
compiled kernels to show.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SWITCH = 1e-5  # seconds


class _Launch:
    """Stands for the kernel in Triton's loop over the grid: keeps the calls, and runs all with the last."""

    def __init__(self, kernel: Callable[..., None], size: int, blocks: _Blocks) -> None:
        self.kernel, self.size, self.blocks = kernel, size, blocks
        self.indices: list[tuple[int, int, int]] = []
        self.errors: list[BaseException] = []
        # what Triton asks of a kernel
        self.__signature__, self.__name__ = inspect.signature(kernel), kernel.__name__
        self.__globals__, self.__annotations__ = kernel.__globals__, kernel.__annotations__

    def __call__(self, **arguments: Any) -> None:
        self.indices.append(self.blocks.local.index)
        if len(self.indices) < self.size:
            return
        threads = [
            threading.Thread(target=self._run, args=(number, arguments), daemon=True)
            for number in range(self.size)
        ]
        until = time.monotonic() + self.blocks.patience
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        waiting = [number for number, thread in enumerate(threads) if thread.is_alive()]
        self.blocks.over = bool(waiting)  # ends them at their next atomic
        for thread in threads:
            thread.join()
        self.blocks.over = False
        if waiting:
            raise TimeoutError(f"blocks {waiting} of {self.__name__} waited {self.blocks.patience} s")
        if self.errors:
            raise self.errors[0]

    def _run(self, number: int, arguments: dict[str, Any]) -> None:
        if number == self.blocks.late:
            time.sleep(self.blocks.delay)
        self.blocks.local.index = self.indices[number]
        try:
            self.kernel(**arguments)
        except BaseException as error:
            self.errors.append(error)


class _Blocks:
    """The state that launches share: ``late`` is the block that starts ``delay`` seconds after the others."""

    def __init__(self, late: int | None, delay: float, patience: float) -> None:
        self.late, self.delay, self.patience = late, delay, patience
        self.local = threading.local()
        self.over = False
        self.most = 0  # blocks of the largest launch


@contextmanager
def in_threads(late: int | None = None, delay: float = 0.2, patience: float = 300.0) -> Iterator[_Blocks]:
    """Runs the blocks of every launch at once; that some still wait after ``patience`` s is an error."""
    from triton.runtime import interpreter

    blocks = _Blocks(late, delay, patience)
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    call, atomic, switch = executor.__call__, builder.create_atomic_rmw, sys.getswitchinterval()

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        grid = self.grid(options) if callable(self.grid) else self.grid
        size = 1
        for extent in grid:
            size *= extent
        blocks.most = max(blocks.most, size)
        self.fn = _Launch(self.fn, size, blocks)
        call(self, *arguments, **options)

    def meet(self: Any, *arguments: Any) -> Any:
        if blocks.over:
            raise SystemExit
        return atomic(self, *arguments)

    index = property(lambda _: blocks.local.index, lambda _, value: setattr(blocks.local, "index", value))
    before = vars(builder).get("grid_idx")
    builder.grid_idx, builder.create_atomic_rmw, executor.__call__ = index, meet, launch
    sys.setswitchinterval(SWITCH)
    try:
        yield blocks
    finally:
        sys.setswitchinterval(switch)
        builder.create_atomic_rmw, executor.__call__ = atomic, call
        del builder.grid_idx
        if before is not None:
            builder.grid_idx = before
