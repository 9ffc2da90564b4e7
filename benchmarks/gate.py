"""The GPU gate: what is to be known of a GPU, in steps of minutes that can be interrupted.

``python -m benchmarks --gpu-gate --step next --out DIR`` goes on where the last call stopped. A step writes
``DIR/gate.json`` after every item, and begins none that its time doesn't allow. Results count only for the
same device, commit and versions; others are set aside. The steps and their items are in ``gate_steps.py``.

The exit status is 0 unless a kernel is wrong. What can't run, or fails to compile, is noted and no more.

With ``TRITON_INTERPRET=1`` it is a rehearsal on the CPU, with small shapes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine, record
from vqfast import files
from vqfast.ops import registry

SECONDS = 520.0  # of a call: nine minutes with the start and the end of Python
TRIES = 3  # of an item that isn't done, with half of a call's time or more: Triton's cache has more each time
GPU_BACKENDS = ("triton",)
OPS = {  # what runs in a suite; other items begin with the name of an op
    "degenerate": ("nearest", "residual"),
    "layer": ("residual",),
    "residual_vq": ("residual",),
    "prior_training": ("masked_conv",),
    "sampling": ("sampler",),
    "waveform": ("sampler",),
}


class Item(NamedTuple):
    """One measurement of a step.

    Attributes:
        name: its key in the results.
        run: takes the seconds left, and returns what was found; with ``"wrong"`` in it a kernel is wrong,
            with ``"unfinished"`` it wasn't done in that time.
        least: seconds that must be left to begin it.
    """

    name: str
    run: Callable[[float], dict[str, Any]]
    least: float = 20.0


Steps = Mapping[str, Callable[[], Iterator[Item]]]


def main(step: str, out: Path, seconds: float = SECONDS, steps: Steps | None = None) -> int:
    """Runs a step: its number from 1 on, its name, ``next`` for the first that isn't complete, or ``all``.

    Returns:
        0, 1 if a kernel is wrong, 2 without a GPU or such a step.
    """
    if not (torch.cuda.is_available() or registry.interpreted()):
        print("the GPU gate needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    if registry.interpreted():  # else the CPU's kernels would be rehearsed
        os.environ["VQFAST_BACKEND"] = "triton"
    if steps is None:
        from benchmarks import gate_steps

        steps = gate_steps.STEPS
    until = time.monotonic() + seconds
    found = begun(out)
    names = list(steps)
    if step.isdigit() and 1 <= int(step) <= len(names):
        step = names[int(step) - 1]
    if step not in ("next", "all", *names):
        print(f"--step is {step}; want next, all, 1 to {len(names)}, {', '.join(names)}", file=sys.stderr)
        return 2
    for name in names if step in ("next", "all") else [step]:
        did, complete = run(name, list(steps[name]()), found, out, until if step != "all" else None)
        if step == "next" and (did or not complete):
            break
    ship(found, out)
    wrong = {f"{name}: {item}" for name, item, result in every(found) if "wrong" in result}
    print("\n".join(f"WRONG {each}" for each in sorted(wrong)) or "no kernel was wrong")
    print(f"{sum(1 for _ in every(found))} items in {out / 'gate.json'}")
    return int(bool(wrong))


def begun(out: Path) -> dict[str, Any]:
    """The results so far of this device, commit and versions; those of another are renamed."""
    about = {"device": device(), **machine.conditions()}
    about.pop("threads")
    path = out / "gate.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"about": about, "steps": {}}
    if known["about"] == about:
        return known
    number = sum(1 for _ in out.glob("gate-*.json"))
    path.rename(out / f"gate-{number}.json")
    print(f"{path} was of {known['about']}: set aside")
    return {"about": about, "steps": {}}


def device() -> str:
    """The name of the device under the gate."""
    return "Triton's interpreter" if registry.interpreted() else machine.name()


def run(
    name: str, items: list[Item], found: dict[str, Any], out: Path, until: float | None
) -> tuple[int, bool]:
    """Runs the items of a step that have no result; returns how many it ran, and whether none is left.

    One that isn't done has its turn again after the others, in this call or the next.
    """
    results = found["steps"].setdefault(name, {})

    def tries(item: Item) -> int:
        result: dict[str, int] = results.get(item.name, {"tries": -1})
        return result.get("tries", TRIES)

    left = sorted((item for item in items if tries(item) < TRIES), key=tries)
    for number, item in enumerate(left):
        remaining = SECONDS if until is None else until - time.monotonic()
        if remaining < item.least:
            print(f"{name}: {len(left) - number} items are left for the next call", flush=True)
            return number, False
        began = time.monotonic()
        try:
            result = item.run(remaining)
        except AssertionError as error:
            result = {"wrong": f"{error}"[:2000] or "an assertion failed"}
        except Exception as error:  # whatever a compiler or a peer may raise
            result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        if result.pop("unfinished", False):
            result["tries"] = max(0, tries(item)) + int(remaining > SECONDS / 2)
        results[item.name] = {**result, "took": round(time.monotonic() - began, 1)}
        write(out / "gate.json", found)
        print(f"{name}: {item.name}: {json.dumps(results[item.name])[:300]}", flush=True)
    return len(left), all(tries(item) == TRIES for item in items)


def write(path: Path, found: object) -> None:
    """Writes the file whole or not at all: an interrupted gate has whole results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, (json.dumps(found, indent=1) + "\n").encode())


def every(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Step, item and result."""
    for step, items in found["steps"].items():
        yield from ((step, item, result) for item, result in items.items())


def ops_of(item: str) -> tuple[str, ...]:
    """The ops that run in an item."""
    name = item.split()[0].rstrip(":")
    return OPS.get(name, (name,))


def ship(found: dict[str, Any], out: Path) -> Path | None:
    """Writes the file that the registry reads, to be copied to ``vqfast/ops/records``.

    An op has passed when all items of its matrix have, and no item in which it runs is wrong.
    """
    steps = found["steps"]
    wrong = {op for _, item, result in every(found) if "wrong" in result for op in ops_of(item)}
    passed = sorted(
        op
        for op in registry.TABLE.keys() - wrong
        if (matrix := steps.get(f"matrix {op}")) and all(result.get("passed") for result in matrix.values())
    )
    if not any(name.startswith("matrix") for name in steps):
        return None
    about = found["about"]
    target = out / "records" / record.path(about["device"]).name
    shown = {name: about[name] for name in ("device", "commit", "versions")}
    write(target, {**shown, "passed": {backend: passed for backend in GPU_BACKENDS}})
    return target
