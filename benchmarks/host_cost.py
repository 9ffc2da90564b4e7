"""Python's time of calls and launches, without a GPU: ``python -m benchmarks.host_cost``.

Kernels that do nothing stand for the compiled ones, so that all is timed but the driver's own call. The
tensors are on the CPU, whose allocator isn't the GPU's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from vqfast.functional import gate, masked_conv2d, nearest_code, quantize
from vqfast.ops import launch, registry
from vqfast.ops.masked_conv import triton as conv
from vqfast.ops.nearest import triton as nearest
from vqfast.ops.residual import triton as residual
from vqfast.sampling.executors import triton as sampler
from vqfast.sampling.executors import triton_kernel
from vqfast.sampling.executors.probe import Part, probe_request
from vqfast.sampling.wavefront import raster

CPU = torch.device("cpu")


class Compiled:
    """Stands for a jitted kernel, and for what it compiles to."""

    function = packed_metadata = None

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self

    def run(self, *arguments: Any) -> None:
        """A launch."""


@contextmanager
def stubbed() -> Iterator[dict[str, Callable[[], object]]]:
    """Calls whose kernels are kept, by name."""
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    kernels = {
        nearest: ("_prepare", "_search"),
        residual: ("_count", "_segments", "_backward"),
        conv: ("_convolve", "_weight_gradient", "_sum_pieces", "_gate"),
        triton_kernel: ("sample",),
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch, "driver", SimpleNamespace(active=active)))
        stack.enter_context(mock.patch.dict("os.environ", {"VQFAST_BACKEND": "triton"}))
        for module, names in kernels.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, Compiled(getattr(module, name))))
        for module in (nearest, residual, conv):
            stack.enter_context(mock.patch.object(module, "_plans", {}))
        for op in ("nearest", "residual", "masked_conv"):
            anywhere = replace(registry.TABLE[op]["triton"], devices=None)
            stack.enter_context(mock.patch.dict(registry.TABLE[op], triton=anywhere))
        x, codebook = torch.randn(64, 64), torch.randn(512, 64)
        zero, indices = x.sum() * 0, torch.zeros(64, dtype=torch.int64)
        counts, sums = indices.new_zeros(512), codebook * 0

        def counted() -> None:
            kernel, blocks, arguments = residual._statistics(x, indices, counts, sums, with_sums=True)
            kernel(blocks, arguments)

        images, weight, bias = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.randn(16)
        request = probe_request(CPU, torch.float32, Part(1))
        tuning = sampler.tuning_of(request.weight, 1)
        sampling = sampler.Sampling(request, tuning, raster(request.program, *request.grid))
        tables = sampling.plan.position
        calls: dict[str, Callable[[], object]] = {
            "nearest_code": lambda: nearest_code(x, codebook),
            "quantize": lambda: quantize(x, codebook, return_statistics=True),
            "its gradients": lambda: residual.backward_stage(x, zero, zero, x, codebook, indices, 1),
            "its statistics alone": counted,
            "sums in order": lambda: residual._by_code(x, codebook, indices, counts, sums, None, 0.0),
            "masked_conv2d": lambda: masked_conv2d(images, weight, bias),
            "a convolution's gradients": lambda: conv.masked_conv2d_backward(
                images, images, weight, 5, [1, 1], [1, 1]
            ),
            "gate": lambda: gate(images),
            "sampler's launch": lambda: sampling.launch(tables, 0, len(tables.jobs), 0, 1, 1),
        }
        for call in calls.values():
            call()
        yield calls


def microseconds(call: Callable[[], object], calls: int = 2000, rounds: int = 7) -> float:
    """Of a call: the best of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(time.perf_counter() - began)
    return min(times) / calls * 1e6


if __name__ == "__main__":
    with torch.no_grad(), stubbed() as found:
        for name, call in found.items():
            print(f"{name}: {microseconds(call):.1f} us")
