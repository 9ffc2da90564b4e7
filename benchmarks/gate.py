"""The GPU gate: what passed on this device, how fast it is, and whether other tunings were faster.

It writes ``gate`` into the device's record here, and the part that the registry reads into
``vqfast/ops/records/``: both are to be committed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine, plots, record, tables
from vqfast.functional import masked_conv2d, nearest_code
from vqfast.ops import records, registry

TESTS = machine.ROOT / "tests"
SAMPLER = TESTS / "prior" / "test_triton.py"
GPU_BACKENDS = ("triton", "cuda")
Table = dict[str, dict[Hashable, NamedTuple]]


def main(measure: Callable[[], Path]) -> int:
    """Tests, then ``measure``, which returns the device's record, then the sweep; 0 if all tests passed."""
    if not torch.cuda.is_available():
        print("the GPU gate needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    suite = run_tests([str(TESTS)])
    matrices: dict[str, dict[str, dict[str, Any]]] = {backend: {} for backend in GPU_BACKENDS}
    for op, row in registry.TABLE.items():
        for backend in matrices.keys() & row.keys():
            matrices[backend][op] = run_tests(matrix(op), "-k", backend)
    matrices["triton"]["sampler"] = run_tests([str(SAMPLER)])
    shipped = ship(matrices)
    print(f"written to {shipped}")
    where = measure()
    found = record.read(where)
    found["gate"] = {
        **machine.conditions(),
        "suite": suite,
        "matrices": matrices,
        "tunings": {name: sweep(*given) for name, given in sweeps().items()},
    }
    where.write_text(json.dumps(found, indent=1) + "\n")
    plots.draw(where)
    print(f"{tables.printed(found)}\nwritten to {where}, plots beside it")
    outcomes = [suite, *(outcome for ops in matrices.values() for outcome in ops.values())]
    return int(not all(outcome["passed"] for outcome in outcomes))


def matrix(op: str) -> list[str]:
    """The test files that speak for an op's kernels."""
    return [str(TESTS / "ops" / name) for name in (f"test_{op}.py", "test_triton_kernels.py")]


def run_tests(files: list[str], *options: str) -> dict[str, object]:
    """Whether pytest passes, some tests at least, and what it says last."""
    environment = {name: value for name, value in os.environ.items() if name != "VQFAST_BACKEND"}
    command = [sys.executable, "-m", "pytest", *files, *options, "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "summary": last[0], "failed": failed}


def ship(matrices: dict[str, dict[str, dict[str, Any]]]) -> Path:
    """Writes what the registry reads: by backend, the ops that passed on this device."""
    device = machine.name()
    passed = {
        backend: sorted(op for op, outcome in ops.items() if outcome["passed"])
        for backend, ops in matrices.items()
    }
    target = records.FOLDER / record.path(device).name
    target.parent.mkdir(exist_ok=True)
    about = machine.conditions()
    shown = {"device": device, "commit": about["commit"], "versions": about["versions"], "passed": passed}
    target.write_text(json.dumps(shown, indent=1) + "\n")
    return target


def sweeps() -> dict[str, tuple[Table, str, Hashable, Callable[[], object]]]:
    """Each line of this device's tunings: its table, architecture, key, and a call that it decides."""
    from vqfast.ops.masked_conv.triton import arithmetic
    from vqfast.ops.masked_conv.tunings import CONVOLVE
    from vqfast.ops.nearest import tunings
    from vqfast.ops.nearest.triton import architecture

    arch = architecture(machine.DEVICE)
    arch = arch if arch in tunings.SEARCH else tunings.fallback(arch)
    found: dict[str, tuple[Table, str, Hashable, Callable[[], object]]] = {}
    for widest in tunings.SEARCH[arch]:
        channels = min(widest, 1024)
        x, codes = (torch.randn(n, channels, device=machine.DEVICE) for n in (65536, 4096))
        found[f"nearest {channels}"] = (tunings.SEARCH, arch, widest, partial(nearest_code, x, codes))
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(16, 128, 32, 32, device=machine.DEVICE, dtype=dtype)
        weight = torch.randn(256, 128, 3, 3, device=machine.DEVICE, dtype=dtype)
        found[f"masked_conv {dtype}"] = (CONVOLVE, arch, arithmetic(x), partial(masked_conv2d, x, weight))
    return found


def neighbours(tuning: NamedTuple) -> Iterator[NamedTuple]:
    """The tuning, and those with one of its sizes halved or doubled, or one stage more or less."""
    yield tuning
    for name in ("rows", "codes", "columns", "depth", "warps"):
        size = getattr(tuning, name, None)
        for other in () if size is None else (size // 2, size * 2):
            if other >= (1 if name == "warps" else 16):
                yield tuning._replace(**{name: other})
    for stages in (tuning.stages - 1, tuning.stages + 1):
        if stages:
            yield tuning._replace(stages=stages)


def sweep(table: Table, arch: str, key: Hashable, call: Callable[[], object]) -> list[dict[str, object]]:
    """Seconds of ``call`` with each neighbour of a line of ``table`` in its place, the line itself first."""
    found = []
    for tuning in neighbours(table[arch][key]):
        with _instead(table[arch], key, tuning):
            try:
                call()
                outcome: dict[str, object] = {"seconds": machine.best(call)}
            except Exception as error:  # whatever a compiler may raise
                outcome = {"failed": f"{type(error).__name__}: {error}"[:200]}
        found.append({**tuning._asdict(), **outcome})
    return found


@contextmanager
def _instead(lines: dict[Hashable, NamedTuple], key: Hashable, tuning: NamedTuple) -> Iterator[None]:
    line = lines[key]
    lines[key] = tuning
    try:
        yield
    finally:
        lines[key] = line
