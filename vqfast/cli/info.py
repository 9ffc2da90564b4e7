"""What this machine has, and which backends run on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import torch

import vqfast
from vqfast.ops import library, registry


def machine_lines() -> Iterator[str]:
    """Lines about versions, devices, and every backend of every op: ``runs``, or the reason why not."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"vqfast {vqfast.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    capability = torch.backends.cpu.get_cpu_capability()
    yield f"CPU: {platform.machine()}, {torch.get_num_threads()} threads, {capability}"
    kernels = library.instruction_set() or "none"
    yield f"native kernels: {kernels}{' (VQFAST_ISA)' if os.environ.get('VQFAST_ISA') else ''}"
    yield f"GPU: {', '.join(gpus) or 'none'}"
    yield f"VQFAST_BACKEND: {registry.forced_backend() or 'not set, so the first backend that can run does'}"
    for device in ("cpu", "cuda") if gpus else ("cpu",):
        probe = torch.empty(0, device=device)
        for op in registry.TABLE:
            for backend in registry.BACKENDS:
                refused = registry.refusal(op, backend, probe)
                record = "" if refused else registry.record_of(op, backend, probe.device)
                yield f"{device:5} {op:12} {backend:10} {refused or 'runs'}{record and f' ({record})'}"
