"""Sampling on CPUs: the whole of it is ``csrc/sampler/``.

A float64 prior is computed in float64, all others in float32. The weights of a bfloat16 prior stay
bfloat16. With ``precision="bfloat16"`` matrices are kept as pairs of bfloat16 numbers. A CPU multiplies
pairs at once, or tiles of them, where that is faster, and else widens them to float32: products are the
same, and sums but for rounding.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from array import array
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from vqfast.ops import library
from vqfast.sampling.attention import Attention
from vqfast.sampling.precision import BFLOAT16
from vqfast.sampling.program import CODES, CONDITION, Phase, Program, available
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import Wavefront, raster, wavefront

_SECONDS = 0.1  # of one call of the library, after which Python handles Ctrl-C
_SAMPLES = 8  # a thread with as many works alone: it reads all weights, but never waits
_LOAD = 1.5  # of each CPU, from which on the machine counts as busy
_IN_WAVES = 1  # samples: of more, products take the time, not the weights on their way
_PIECES_FROM = 128  # rows of early products: with so many, tiles multiply float32 faster, in pieces
_MOST_KEPT = 1 << 26  # bytes of memory that are kept for the next call: the system would clear new ones first
_PRODUCTS = 1 << 14  # of a step for each thread: fewer take less time than threads need to meet
kept: list[Tensor] = []  # that memory, unless a call has it


def _plan(
    program: Program, front: Wavefront, weights: dict[str, Tensor], condition_channels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The program as the native library takes it (``csrc/shared/contract.def``).

    Args:
        program: the steps.
        front: the order of positions.
        weights: all, which steps and terms name by their numbers.
        condition_channels: of the conditioning map; 0 where there is none.

    Returns:
        int64 tensors ``steps``, ``terms``, ``taps`` and ``attentions``, one record a row.
    """
    contract, numbers = library.contract(), {name: number for number, name in enumerate(weights)}
    steps: list[list[int]] = []
    terms: list[list[int]] = []
    taps: list[list[int]] = []
    attentions: list[list[int]] = []
    phases = program.phases()
    for number, step in enumerate(program.steps):
        first_term = len(terms)
        if isinstance(step, Attention):
            (scale,) = struct.unpack("q", struct.pack("d", step.scale))
            attentions.append(
                contract.record(
                    "Attention",
                    query=step.query,
                    key=step.key,
                    value=step.value,
                    heads=step.heads,
                    scale=scale,
                    own=int(step.own),
                )
            )
        for term in step.terms:
            inputs = condition_channels if term.source == CONDITION else 0
            terms.append(
                contract.record(
                    "Term",
                    source=term.source,
                    channels=program.steps[term.source].channels if term.source >= 0 else inputs,
                    weight=numbers.get(term.weight or "", -1),
                    first_tap=len(taps),
                    num_taps=len(term.taps),
                )
            )
            for dy, dx in term.taps:
                early = available(term.source, (dy, dx), phases) == Phase.ROW
                taps.append(contract.record("Tap", dy=dy, dx=dx, early=int(early)))
        rows, left, right = program.strided_reach(number)
        steps.append(
            contract.record(
                "Step",
                width=step.width,
                activation=contract.number("Activation", step.activation),
                phase=phases[number],
                residual=-1 if step.residual is None else step.residual,
                stride=step.stride,
                bias=numbers.get(step.bias or "", -1),
                label_bias=numbers.get(step.label_bias or "", -1),
                rows=rows + front.rows - 1,
                left=left,
                right=right,
                lead=front.leads[number],
                first_term=first_term,
                num_terms=len(step.terms),
                attention=len(attentions) - 1 if isinstance(step, Attention) else -1,
            )
        )
    return _table(steps), _table(terms), _table(taps), _table(attentions)


def _table(records: list[list[int]]) -> Tensor:
    """int64, a record a row; ``torch.tensor`` takes six times as long."""
    if not records:
        return torch.empty(0, dtype=torch.int64)
    numbers = array("q", chain.from_iterable(records))
    return torch.frombuffer(numbers, dtype=torch.int64).view(len(records), -1)


def _threads(program: Program, weights: dict[str, Tensor], batch: int, precision: str | None = None) -> int:
    """How many threads the average step of a position keeps busy.

    At least as many as keep their parts of the weights in their second caches, or all where they can't: from
    the third cache, weights of a few samples come several times as slowly (``csrc/sampler/sampler.cpp``), and
    each thread reads its part alone.
    """
    late = [step for step, phase in zip(program.steps, program.phases(), strict=True) if phase != Phase.ROW]
    matrices = [t.weight for step in late for t in step.terms if t.source > CODES and t.weight]
    numbers = sum(weights[name].numel() for name in matrices)
    fitting = batch * numbers // max(1, len(late)) // _PRODUCTS
    total = 2 * numbers if precision == BFLOAT16 else sum(weights[name].nbytes for name in matrices)
    if size := _second_cache():
        fitting = max(fitting, -(-total // size))
    if _busy():
        fitting = min(fitting, batch // _SAMPLES)  # threads that work alone
    return max(1, min(torch.get_num_threads(), fitting))


@functools.cache
def _second_cache() -> int:
    """Bytes of a CPU's second cache; 0 where the system doesn't say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii")
        return int(text.strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0


def _busy() -> bool:
    """Whether other work takes the CPUs, so that threads which meet after each step would wait for it."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    return load > _LOAD * (os.cpu_count() or 1)


def _factors(precision: str | None, dtype: torch.dtype, rows: int) -> str:
    """How products are computed, the faster way where there are two; early ones have so many rows."""
    if precision == BFLOAT16:
        return "pairs" if library.multiplies_pairs() else "widened"
    return "pieces" if dtype == torch.float32 and rows >= _PIECES_FROM else "exact"


def _spare() -> Tensor:
    """The memory of an earlier call, uint8; empty if there is none."""
    with suppress(IndexError):  # another thread may be faster
        return kept.pop()
    return torch.empty(0, dtype=torch.uint8)


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W, S)``."""
    program, weights = request.program, request.weights
    dtype = next(iter(weights.values())).dtype
    if dtype == torch.float16:
        dtype = torch.float32
    given = [weight.to(dtype) for weight in weights.values()]
    batch, height, width, num_codes = request.known.shape
    condition = request.condition
    if condition is None:
        condition = given[0].new_empty(batch, 0, height, -(-width // program.condition_stride))
    if batch > _IN_WAVES:
        front = raster(program, height, width)
    else:
        front = wavefront(program, weights, height, width)
    threads = _threads(program, weights, batch * front.rows, request.precision)
    teams = max(1, min(threads, batch // _SAMPLES))
    factors = _factors(request.precision, dtype, batch // teams * front.chunk)
    draw = request.draw
    code_rows, code_left, code_right = program.reach(*program.codes)
    sizes = library.contract().record(
        "SamplerSizes",
        num_embeddings=program.num_embeddings,
        num_codes=num_codes,
        num_mixtures=program.num_mixtures,
        batch=batch,
        height=height,
        width=width,
        block=program.block(height, width),
        distance=front.distance,
        chunk=front.chunk,
        condition_channels=condition.shape[1],
        condition_stride=program.condition_stride,
        code_rows=code_rows + front.rows - 1,
        code_left=code_left,
        code_right=code_right,
        threads=threads,
        teams=teams,
        seed=draw.seed - (draw.seed >> 63 << 64),
        top_k=draw.top_k or 0,
        factors=library.contract().number("Factors", factors),
    )
    plan = (*_plan(program, front, weights, condition.shape[1]), torch.tensor(sizes), given)
    none = given[0].new_empty(0)
    labels = none.long() if request.labels is None else request.labels.contiguous()
    condition = condition.to(torch.float64 if dtype == torch.float64 else torch.float32).contiguous()
    known, codes = request.known.contiguous(), torch.empty_like(request.known)
    memory = torch.ops.vqfast_native.prepare_sampler(*plan, labels, _spare())
    top_p = 1.0 if draw.top_p is None else draw.top_p
    done, count = 0, 1
    while done < front.moments:
        count = min(count, front.moments - done)
        began = time.perf_counter()
        torch.ops.vqfast_native.run_sampler(
            *plan,
            condition,
            known,
            draw.numbers.contiguous(),
            codes,
            memory,
            draw.temperature,
            top_p,
            done,
            count,
        )
        positions = front.positions(done + count) - front.positions(done)
        request.progress(batch * num_codes * positions)
        done += count
        count = max(1, min(2 * count, int(count * _SECONDS / (time.perf_counter() - began))))
    if memory.nbytes <= _MOST_KEPT:
        kept[:] = [memory]
    return codes
