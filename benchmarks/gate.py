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
from vqfast import PixelCNN
from vqfast.functional import masked_conv2d, nearest_code
from vqfast.ops import records, registry

TESTS = machine.ROOT / "tests"
GPU_BACKENDS = ("triton",)
Table = dict[str, dict[Hashable, NamedTuple]]  # by architecture, then by what a line serves
Sweep = tuple[Table, str, Hashable, Callable[[], object]]  # a line, and a call that it decides


def main(measure: Callable[[], Path]) -> int:
    """Tests, then ``measure``, which returns the device's record, then the sweep; 0 if all tests passed."""
    if not torch.cuda.is_available():
        print("the GPU gate needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    suite = run_tests([str(TESTS)])
    matrices: dict[str, dict[str, dict[str, Any]]] = {backend: {} for backend in GPU_BACKENDS}
    for op, supports in registry.TABLE.items():
        for backend in matrices.keys() & supports.keys():
            matrices[backend][op] = run_tests(matrix(op), "-k", backend)
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
    if op == "sampler":
        return [str(TESTS / "sampling" / "test_triton.py")]
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


def sweeps() -> dict[str, Sweep]:
    """Each line of this device's tunings, but those of float64: it is there to be right."""
    from vqfast.ops.nearest.triton import architecture
    from vqfast.ops.nearest.tunings import SEARCH, fallback

    arch = architecture(machine.DEVICE)
    arch = arch if arch in SEARCH else fallback(arch)
    return dict(line for lines in (_of_search, _of_convolution, _of_sampler) for line in lines(arch))


def _of_search(arch: str) -> Iterator[tuple[str, Sweep]]:
    from vqfast.ops.nearest.tunings import ANY, RECHECK, SEARCH

    for name, table, wide in (("search", SEARCH, 1024), ("recheck", RECHECK, 256)):
        for widest in table[arch]:
            channels = wide if widest == ANY else widest
            x, codes = (torch.randn(n, channels, device=machine.DEVICE) for n in (65536, 4096))
            if table is RECHECK:  # every row's best code has a twin, so that none is certain
                codes = codes.repeat(2, 1)
            yield f"{name} {channels}", (table, arch, widest, partial(nearest_code, x, codes))


def _of_convolution(arch: str) -> Iterator[tuple[str, Sweep]]:
    from vqfast.ops.masked_conv import triton as kernels
    from vqfast.ops.masked_conv.tunings import CONVOLVE, WEIGHT

    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")):
        shapes = (16, 128, 32, 32), (256, 128, 3, 3), (16, 256, 32, 32)
        x, weight, grad = (torch.randn(shape, device=machine.DEVICE, dtype=dtype) for shape in shapes)
        calls = {
            "convolve": (CONVOLVE, partial(masked_conv2d, x, weight, mask_type="B")),
            "weight": (WEIGHT, partial(kernels.masked_conv2d_backward, grad, x, weight, 5, [1, 1], [1, 1])),
        }
        key = _computing(precision, partial(kernels.arithmetic, x))
        for name, (table, call) in calls.items():
            yield f"{name} {key}", (table, arch, key, partial(_computing, precision, call))


def _computing(precision: str, call: Callable[[], object]) -> object:
    """``call()``, where that is what float32 convolutions compute in."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        return call()
    finally:
        conv.fp32_precision = before


def _of_sampler(arch: str) -> Iterator[tuple[str, Sweep]]:
    from vqfast.ops.nearest.tunings import ANY
    from vqfast.sampling.executors.triton_tunings import SAMPLING

    for dtype in (torch.bfloat16, torch.float32):
        prior = PixelCNN(512, 128, 15).to(machine.DEVICE, dtype).eval()
        table = SAMPLING[dtype.itemsize]
        for widest in table[arch]:
            batch = 4096 if widest == ANY else widest
            call = partial(prior.sample, batch, (2, 32), method="triton", batch_size=batch)
            yield f"sampler {dtype}, batch {batch}", (table, arch, widest, call)


def neighbours(tuning: NamedTuple) -> Iterator[NamedTuple]:
    """The tuning, and those with one of its sizes halved or doubled, or one stage more or less."""
    yield tuning
    for name, value in tuning._asdict().items():
        for other in _others(name, value):
            yield tuning._replace(**{name: other})


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, tuple):  # a tuning of several launches
        return list(neighbours(value))[1:]
    if name == "stages":
        return [other for other in (value - 1, value + 1) if other]
    if name == "splits" or (name == "members" and value == 1):  # not sizes: they choose another algorithm
        return []
    least = 1 if name in ("warps", "images", "members") else min(16, value)  # of a tensor core's tile
    return [other for other in (value // 2, value * 2) if other >= least]


def sweep(table: Table, arch: str, key: Hashable, call: Callable[[], object]) -> list[dict[str, object]]:
    """Seconds of ``call`` with each neighbour of a line of ``table`` in its place, the line itself first."""
    found = []
    for tuning in neighbours(table[arch][key]):
        with instead(table[arch], key, tuning):
            try:
                call()
                outcome: dict[str, object] = {"seconds": machine.best(call)}
            except Exception as error:  # whatever a compiler may raise
                outcome = {"failed": f"{type(error).__name__}: {error}"[:200]}
        shown = {
            name: value._asdict() if isinstance(value, tuple) else value
            for name, value in tuning._asdict().items()
        }
        found.append({**shown, **outcome})
    return found


@contextmanager
def instead(lines: dict[Hashable, NamedTuple], key: Hashable, tuning: NamedTuple) -> Iterator[None]:
    """``tuning`` in the place of a line."""
    line = lines[key]
    lines[key] = tuning
    try:
        yield
    finally:
        lines[key] = line
