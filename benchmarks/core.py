"""A case: one computation at one shape, by several contenders; and how it is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine

Call = Callable[[Any], Any]  # of a case's input
Contenders = Mapping[str, Callable[[], Call]]  # by name, what builds its call
Outputs = dict[str, Any]  # by contender
MEASURABLE = 2e-3  # seconds; a shorter call is repeated and averaged
LONG = 0.1  # seconds; a call that took as long while its memory was measured isn't repeated
LARGE_BLOCK = 31 * 2**20  # bytes


class AbsentError(Exception):
    """A contender can't run here; the message says why."""


class Weights(NamedTuple):
    """Weights that are read again and again, through a CPU's caches, and the operations with them."""

    flop: float
    bytes: int
    times: float  # that they are read


class Floor(NamedTuple):
    """The operations that a case needs, and the bytes that it reads and writes. The slower of both counts.

    Of ``weights`` as well, some after the others.
    """

    flop: float
    bytes: float = 0.0
    weights: tuple[Weights, ...] = ()


def _distances(vectors: torch.Size, codebook: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel() * vectors[-1]


def counted(build: Callable[[], Call], data: Any) -> Floor:
    """The floor of a case, counted: the products, convolutions and distances of a contender in PyTorch."""
    call = build()
    distances = dict.fromkeys((torch.ops.aten._cdist_forward, torch.ops.aten._euclidean_dist), _distances)
    with FlopCounterMode(display=False, custom_mapping=distances) as counter:
        call(data)
    return Floor(counter.get_total_flops())


@dataclass(frozen=True)
class Case:
    """One computation at one shape, by several contenders, vqfast first.

    Attributes:
        name: its name in the table.
        shape: its sizes, by the names of the plots' axes.
        contenders: builders of the calls; one that can't run here raises ``AbsentError`` or ``ImportError``.
        data: makes a new random input for the calls.
        check: called with an input and the contenders' outputs, raises ``AssertionError`` if one is wrong.
        floor: the operations and bytes that the case needs, or a function that counts them on an input.
        parts: contenders that do only this fraction of the work, because all of it would take hours.
        sweep: the axis of the growth curve that the case is a point of.
        slow: contenders that only ``--full`` times; with ``vqfast`` among them, the whole case.
        once: whether the first call is timed and no other.
        memory: whether the memory of a call is measured.
    """

    name: str
    shape: Mapping[str, int]
    contenders: Contenders
    data: Callable[[], Any]
    check: Callable[[Any, Outputs], None]
    floor: Floor | Callable[[Any], Floor] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    sweep: str | None = None
    slow: Collection[str] = ()
    once: bool = False
    memory: bool = True


def built(case: Case, full: bool = True) -> tuple[dict[str, Call], dict[str, str]]:
    """Builds the calls: those that can run here, and for the others the reason why not.

    Contenders in ``case.slow`` are built only if ``full``. Without vqfast there is nothing to compare, and no
    other is built.

    Raises:
        AbsentError: vqfast can't run here.
    """
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, build in case.contenders.items():
        torch.manual_seed(0)
        try:
            if name in case.slow and not full:
                raise AbsentError("only in the full form")
            calls[name] = build()
        except (AbsentError, ImportError) as error:
            if name == "vqfast":
                raise AbsentError(str(error)) from error
            absent[name] = str(error)
    return calls, absent


def seconds(call: Call, data: Any, times: int = 1) -> tuple[float, Any]:
    """The time of one call, as the mean of ``times`` calls, and what the last one returned."""
    machine.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        output = call(data)
    machine.synchronize()
    return (time.perf_counter() - began) / times, output


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``torch.compile`` from a clean slate.

    The graphs of earlier cases would count against its limit of recompilations, after which it runs plain
    PyTorch, and would make it compile for any size.
    """
    torch.compiler.reset()
    result: Callable[..., Any] = torch.compile(function, **options)
    return result


@cache
def peak() -> machine.Peak:
    """The peak rates of this machine, measured once a process."""
    return machine.peak()


def measure(case: Case, rounds: int, full: bool = True) -> dict[str, object]:
    """Measures a case: calls every contender once, checks the outputs, then times all in interleaved rounds.

    Every round has a new input, which all contenders share.

    Returns:
        The case as the record keeps it, with every sample in seconds.

    Raises:
        AssertionError: vqfast's output is wrong.
        AbsentError: vqfast can't run here.
    """
    # Once a block of this size is freed, glibc keeps freed memory up to twice that size for the next call, as
    # in any process that has worked for a while. Otherwise the cases before this one would decide whether a
    # call gets fresh memory, which can take longer than the call itself.
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)
    calls, absent = built(case, full)
    data = case.data()
    first: dict[str, tuple[float, Any]] = {}
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
    times = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        took = [0.0]

        def timed(call: Call = call, took: list[float] = took) -> None:
            took[0] = seconds(call, data)[0]

        if case.memory:
            memory[name] = machine.added_memory(timed)
        if took[0] < LONG and not case.once:
            timed()
            times[name] = math.ceil(MEASURABLE / took[0])
    if not case.once:
        samples = {name: [] for name in calls}
        turns = list(calls)
        for _ in range(rounds):
            data = case.data()
            for name in turns:
                samples[name].append(seconds(calls[name], data, times[name])[0] / case.parts.get(name, 1))
            turns.append(turns.pop(0))  # the first one on new data pays for its way into the caches
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
    """The peers whose outputs fail the check, with its message."""
    alone: Outputs = {"vqfast": outputs["vqfast"]}
    wrong: dict[str, str] = {}
    case.check(data, alone)
    for name in outputs.keys() - alone.keys():
        try:
            case.check(data, {**alone, name: outputs[name]})
        except AssertionError as error:
            wrong[name] = str(error)[:500]
    return wrong


def _floor(floor: Floor) -> dict[str, float]:
    rates, reading = peak(), 0.0
    took = max(floor.flop / rates.flops, floor.bytes / rates.bytes)
    for each in floor.weights:
        reading += max(each.flop / rates.flops, each.times * each.bytes / machine.reading(each.bytes))
    seconds = {"products": took, "seconds": max(took, reading)} if floor.weights else {"seconds": took}
    rounded = {name: float(f"{value:.4g}") for name, value in seconds.items()}
    return {"flop": floor.flop, "bytes": floor.bytes, **rounded}
