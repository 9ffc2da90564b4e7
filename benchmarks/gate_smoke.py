"""Every kernel of the GPU backends once, compared with the reference: ``python -m benchmarks.gate_smoke OP``.

The exit status is 1 where a kernel computes something else, and 3 where one doesn't run.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch

from benchmarks import machine
from benchmarks.gate import GPU_BACKENDS
from vqfast.ops import registry
from vqfast.ops.modules import module


def main(ops: Collection[str]) -> int:
    """Compares ops in float32 and, on a GPU, in bfloat16."""
    status = 0
    dtypes = (torch.float32,) if registry.interpreted() else (torch.float32, torch.bfloat16)
    for op in ops:
        if op == "sampler" and registry.interpreted():  # takes minutes there
            continue
        for backend in GPU_BACKENDS:
            for dtype in dtypes:
                said = "as the reference"
                probe, kernels, reference = (module(op, name) for name in ("probe", backend, "reference"))
                parts = probe.PARTS
                if registry.interpreted():  # all would take minutes there: one of each function
                    parts = {getattr(part, "function", ""): part for part in parts}.values()
                try:
                    for part in parts:
                        with torch.no_grad():
                            probe.check(kernels, reference, machine.DEVICE, dtype, 8, part)
                    machine.synchronize()
                except AssertionError as error:
                    status, said = 1, f"WRONG: {error}"
                except Exception as error:  # whatever a compiler may raise
                    status, said = status or 3, f"{type(error).__name__}: {error}"
                print(f"{backend} {op} {dtype}: {said}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
