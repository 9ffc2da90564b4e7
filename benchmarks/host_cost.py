"""Python's time of a search's launches, without a GPU: ``python -m benchmarks.host_cost``.

A driver that does nothing stands for the GPU's, so that all but the driver's own call is timed. The tensors
are on the CPU, whose allocator isn't the GPU's.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from vqfast.ops import launch
from vqfast.ops.nearest import triton as nearest


class Compiled:
    """Stands for a jitted kernel, and for what it compiles to."""

    function = packed_metadata = None

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self

    def run(self, *arguments: Any) -> None:
        """A launch."""


def microseconds(calls: int = 2000, rounds: int = 7) -> float:
    """Of a call of ``nearest`` whose kernels are kept: the best of some rounds."""
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    x, codebook = torch.randn(64, 64), torch.randn(512, 64)
    times = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch, "driver", SimpleNamespace(active=active)))
        for name in ("_prepare", "_search"):
            kernel = Compiled(getattr(nearest, name))
            stack.enter_context(mock.patch.object(nearest, name, kernel))
        nearest.nearest(x, codebook)
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(calls):
                nearest.nearest(x, codebook)
            times.append(time.perf_counter() - began)
    return min(times) / calls * 1e6


if __name__ == "__main__":
    print(f"{microseconds():.1f} us a call of nearest, two launches")
