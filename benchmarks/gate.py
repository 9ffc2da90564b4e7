"""The GPU gate: runs the tests of the GPU kernels here, then the suites, then other tunings.

It writes two files, and both are to be committed: ``gate`` in this device's record under ``results/``, and
what passed under ``vqfast/ops/records/``, where the registry of backends reads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks import machine, plots, record, sweep, tables
from vqfast.ops import records, registry

TESTS = machine.ROOT / "tests"
GPU_BACKENDS = ("triton",)


class Outcome(TypedDict):
    """A run of pytest."""

    passed: bool
    summary: str  # pytest's last line
    failed: list[str]  # its lines about tests that failed


Matrices = dict[str, dict[str, Outcome]]  # by backend and op


def main(measure: Callable[[], Path]) -> int:
    """Runs the gate; ``measure`` runs the suites and returns the path of the record.

    Returns:
        0 if all tests passed, 1 if not, 2 without a GPU.
    """
    if not torch.cuda.is_available():
        print("the GPU gate needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    suite = run_tests([str(TESTS)])
    matrices = run_matrices()
    print(f"written to {ship(matrices)}")
    where = measure()
    found = record.read(where)
    found["gate"] = {
        **machine.conditions(),
        "suite": suite,
        "matrices": matrices,
        "tunings": {name: sweep.time_neighbours(line) for name, line in sweep.lines().items()},
    }
    where.write_text(json.dumps(found, indent=1) + "\n")
    plots.draw(where)
    print(f"{tables.printed(found)}\nwritten to {where}, plots beside it")
    outcomes = [suite, *(outcome for ops in matrices.values() for outcome in ops.values())]
    return int(not all(outcome["passed"] for outcome in outcomes))


def run_matrices() -> Matrices:
    """Runs the tests of every op on every GPU backend that it has."""
    return {
        backend: {
            op: run_tests(files_of(op), "-k", backend)
            for op, supports in registry.TABLE.items()
            if backend in supports
        }
        for backend in GPU_BACKENDS
    }


def files_of(op: str) -> list[str]:
    """The files whose tests decide whether an op's kernels may be used."""
    if op == "sampler":
        return [str(TESTS / "sampling" / "executors" / "test_triton.py")]
    files = (TESTS / "ops").glob(f"test_{op}*.py")
    return [*map(str, sorted(files)), str(TESTS / "ops" / "test_triton_kernels.py")]


def run_tests(files: list[str], *options: str) -> Outcome:
    """Runs pytest on ``files``. It passes if some tests ran and none failed."""
    environment = {name: value for name, value in os.environ.items() if name != "VQFAST_BACKEND"}
    command = [sys.executable, "-m", "pytest", *files, *options, "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "summary": last[0], "failed": failed}


def ship(matrices: Matrices) -> Path:
    """Writes the file that the registry reads: by backend, the ops that passed on this device."""
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
