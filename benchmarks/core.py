"""A case, and how it is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine

Call = Callable[[Any], Any]
Outputs = dict[str, Any]
MEASURABLE = 2e-3  # seconds; what is shorter is called several times in a row
SETTLED = 31 * 2**20  # bytes


class AbsentError(Exception):
    """A contender can't run here; the message says why."""


class Floor(NamedTuple):
    """What nobody can do without: operations, and bytes read and written. The slower one counts."""

    flop: float
    bytes: float = 0.0


def _distances(rows: torch.Size, codes: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel() * rows[-1]


def counted(build: Callable[[], Call], data: Any) -> Floor:
    """The operations of the products, convolutions and distances that a contender in plain PyTorch does."""
    call = build()
    distances = dict.fromkeys((torch.ops.aten._cdist_forward, torch.ops.aten._euclidean_dist), _distances)
    with FlopCounterMode(display=False, custom_mapping=distances) as counter:
        call(data)
    return Floor(counter.get_total_flops())


@dataclass(frozen=True)
class Case:
    """One computation at one shape, by several contenders, ours first.

    Attributes:
        name: its row in the table.
        shape: its sizes, by the names of the plots' axes.
        contenders: what builds the call of each, or raises ``AbsentError`` or ``ImportError``.
        data: makes a new random input of the calls.
        check: of an input and what each contender made of it; ``AssertionError`` where that is wrong.
        floor: what the case can't do without, or what counts it on an input.
        parts: contenders that do this part of the work only, as all of it would take hours.
        sweep: the axis of the growth curve that the case is a point of.
        slow: contenders that are left to the full form; where ours is, the whole case is.
        once: whether the first call counts, not the later ones.
        memory: whether a call's memory can be told.
    """

    name: str
    shape: Mapping[str, int]
    contenders: Mapping[str, Callable[[], Call]]
    data: Callable[[], Any]
    check: Callable[[Any, Outputs], None]
    floor: Floor | Callable[[Any], Floor] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    sweep: str | None = None
    slow: Collection[str] = ()
    once: bool = False
    memory: bool = True


def built(case: Case, full: bool = True) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that can run here, and why the others can't; those that compile for minutes if ``full``."""
    calls, absent = {}, {}
    for name, build in case.contenders.items():
        torch.manual_seed(0)
        try:
            if name in case.slow and not full:
                raise AbsentError("only in the full form")
            calls[name] = build()
        except (AbsentError, ImportError) as error:
            absent[name] = str(error)
    return calls, absent


def seconds(call: Call, data: Any, times: int = 1) -> tuple[float, Any]:
    """Of one call, as the mean of ``times``; and what it returned."""
    machine.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        output = call(data)
    machine.synchronize()
    return (time.perf_counter() - began) / times, output


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``torch.compile``, from a clean slate: the graphs of the cases before would count against its limit
    of recompilations, after which it runs plain PyTorch, and would make it compile for any size."""
    torch.compiler.reset()
    return torch.compile(function, **options)


@cache
def peak() -> machine.Peak:
    """This machine's, found once a process."""
    return machine.peak()


def measure(case: Case, rounds: int, full: bool = True) -> dict[str, object]:
    """A row of the record: warm, checked, then all contenders in turn, round after round, on new data.

    Raises:
        AssertionError: our output is wrong.
        AbsentError: ours can't run here.
    """
    # Once it has freed so much, glibc keeps up to twice that for the next call, as in any process that has
    # worked for a while. Else the cases before decide whether memory is fresh: slower than many a kernel.
    torch.empty(SETTLED, dtype=torch.uint8)
    calls, absent = built(case, full)
    if "vqfast" in absent:
        raise AbsentError(absent["vqfast"])
    data = case.data()
    first = {}
    for name, call in calls.items():
        try:
            first[name] = seconds(call, data)
        except Exception as error:  # whatever a peer may raise
            if name == "vqfast":
                raise
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    calls = {name: calls[name] for name in first}
    wrong = _wrong(case, data, {name: output for name, (_, output) in first.items()})
    calls = {name: call for name, call in calls.items() if name not in wrong}
    samples = {name: [first[name][0]] for name in calls}
    del first
    floor = case.floor(data) if callable(case.floor) else case.floor
    memory: dict[str, int | None] = {}
    if case.memory:
        memory = {name: machine.added_memory(partial(call, data)) for name, call in calls.items()}
    if not case.once:
        times = {name: math.ceil(MEASURABLE / seconds(call, data)[0]) for name, call in calls.items()}
        samples = {name: [] for name in calls}
        for _ in range(rounds):
            data = case.data()
            for name, call in calls.items():
                samples[name].append(seconds(call, data, times[name])[0] / case.parts.get(name, 1))
    return {
        "case": case.name,
        "shape": dict(case.shape),
        "sweep": case.sweep,
        "seconds": {name: [float(f"{s:.4g}") for s in found] for name, found in samples.items()},
        "parts": dict(case.parts),
        "memory": memory,
        "absent": absent,
        "wrong": wrong,
        "floor": None if floor is None else _floor(floor),
    }


def _wrong(case: Case, data: Any, outputs: Outputs) -> dict[str, str]:
    """The peers whose output fails the check, and how; they aren't timed."""
    ours, wrong = {"vqfast": outputs["vqfast"]}, {}
    case.check(data, ours)
    for name in outputs.keys() - ours.keys():
        try:
            case.check(data, {**ours, name: outputs[name]})
        except AssertionError as error:
            wrong[name] = str(error)[:500]
    return wrong


def _floor(floor: Floor) -> dict[str, float]:
    took = max(floor.flop / peak().flops, floor.bytes / peak().bytes)
    return {**floor._asdict(), "seconds": float(f"{took:.4g}")}
