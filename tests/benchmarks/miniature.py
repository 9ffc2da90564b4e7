"""The GPU gate on a device that isn't there, with miniature items.

Steps run the gate's own functions, in the processes that the gate would start, on the CPU's kernels.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import core, gate, gate_compile, gate_steps, machine, sweep
from vqfast.ops.nearest.tunings import Tuning

TESTS = """
import pytest

def test_one_triton():
    assert {right}

def test_two_triton():
    pass
"""
SMOKE = "import sys; print('compared'); sys.exit({status} and sys.argv[1] == 'nearest')"


def case(right: bool) -> core.Case:
    """Sums by two contenders."""

    def check(data: Tensor, outputs: core.Outputs) -> None:
        assert right and all(torch.equal(each, data.sum(0)) for each in outputs.values()), "wrong sums"

    contenders = {"vqfast": lambda: partial(torch.sum, dim=0), "missing": lambda: __import__("no_such_peer")}
    return core.Case("sums", {"N": 8}, contenders, lambda: torch.ones(8, 3), check, memory=False)


def line(right: bool) -> sweep.Line:
    """A line of tunings one of which doesn't run."""
    tunings = {64: Tuning(64, 64, 64, 4, 2)}

    def call() -> None:
        assert right, "wrong sums"
        if tunings[64].warps == 8:
            raise RuntimeError("out of resource")

    return sweep.Line(tunings, 64, call)


def gate_in_a_process(step: str, out: Path, wrong: str = "", killed_at: int | None = None) -> int:
    """The exit status of the gate; negative if it was killed.

    ``wrong`` is the step in which a kernel is wrong, ``killed_at`` the number of the item whose work is done,
    but not noted, when the process is killed.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70  # of an error in here
    try:
        status = _main(step, out, wrong, killed_at)
    finally:
        os._exit(status)


def _main(step: str, out: Path, wrong: str, killed_at: int | None) -> int:
    tests = out / "tests"
    for name in ("ops", "sampling/executors", "rest"):
        (tests / name).mkdir(parents=True, exist_ok=True)
    files = {f"matrix {op}": f"ops/test_{op}.py" for op in ("nearest", "masked_conv", "residual")}
    files |= {"matrix sampler": "sampling/executors/test_triton.py", "rest": "rest/test_rest.py"}
    for name, path in {**files, "": "ops/test_triton_kernels.py"}.items():
        (tests / path).write_text(TESTS.format(right=not name or wrong != name))
    smoke = [sys.executable, "-c", SMOKE.format(status=int(wrong == "smoke"))]
    module = SimpleNamespace(CASES=[case(wrong != "suites")])

    def shapes() -> Iterator[gate.Item]:
        for d in (3, 4):
            yield gate.Item(f"nearest, D {d}", partial(gate_steps._nearest, (70, 20, d)))

    def dying(items: Any) -> Iterator[gate.Item]:
        for number, item in enumerate(items()):
            yield item._replace(run=partial(run, item)) if number == killed_at else item

    def run(item: gate.Item, seconds: float) -> dict[str, Any]:
        item.run(seconds)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    replaced = {
        (torch.cuda, "is_available"): lambda: True,
        (gate, "device"): lambda: "A GPU",
        (gate_steps, "TESTS"): tests,
        (gate_steps, "SMOKE"): smoke,
        (gate_steps, "import_module"): lambda name: module,
        (sweep, "lines"): lambda: {"search 64": line(wrong != "sweep"), "search 8": line(True)},
        (gate_compile, "ahead"): lambda name, count, seconds: None,  # it would look for the GPU's own lines
    }
    for (owner, name), value in replaced.items():
        mock.patch.object(owner, name, value).start()
    if wrong == "shapes":
        mock.patch("vqfast.functional.nearest_code", lambda x, codebook: torch.zeros(len(x)).long()).start()
    mock.patch.object(gate_steps, "kernel_times", lambda call: {}).start()
    mock.patch.object(machine, "synchronize", lambda: None).start()
    steps = {**gate_steps.STEPS, "shapes": shapes}
    return gate.main(step, out, steps={name: partial(dying, items) for name, items in steps.items()})
