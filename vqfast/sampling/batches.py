"""Sampling batch by batch: the arguments are checked, and an executor runs each batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import TypedDict, overload

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_indices, check_integer
from vqfast.ops import registry
from vqfast.sampling import parallel
from vqfast.sampling.draw import Draw, check_draw
from vqfast.sampling.executors.probe import part_of
from vqfast.sampling.memory import free_memory, in_batches
from vqfast.sampling.precision import check_precision
from vqfast.sampling.program import CONDITION, Program
from vqfast.sampling.progress import Tick, check_progress, shown, taken_back
from vqfast.sampling.request import Given, GivenLabels, Model, Request
from vqfast.sampling.wavefront import wavefront

_NOISE_COPIES = 8  # float64 tensors as large as a position's noise that are alive while it is made
_COPIES = 4  # of all codes: those that are known, those that are drawn, and the results
_TILE_BYTES = 128  # of the columns of a tile, of which executors keep whole numbers


class Options(TypedDict, total=False):
    """The options of ``CausalPrior.sample_batches``."""

    labels: GivenLabels
    condition: Given
    known: Given
    numbers: Given
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    precision: str | None
    method: str
    batch_size: int
    progress: Tick | bool


def sample_batches(
    model: Model,
    num: int,
    shape: tuple[int, ...],
    *,
    labels: GivenLabels = None,
    condition: Given = None,
    known: Given = None,
    numbers: Given = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    precision: str | None = None,
    method: str = "auto",
    batch_size: int = 256,
    progress: Tick | bool = False,
) -> Iterator[Tensor]:
    """See ``CausalPrior.sample_batches``. All arguments are checked before the first batch."""
    wanted = "(T,)" if model.ndim == 1 else "(H, W)"
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape is {shape!r}; want {wanted}")
    shape = tuple(shape)
    check_integer("num", num)
    check_integer("batch_size", batch_size)
    for size in shape:
        check_integer(f"a size of shape {shape}", size)
    if len(shape) != model.ndim:
        raise ValueError(f"shape is {shape}; want {wanted}")
    check_draw(temperature, top_k, top_p, seed)
    check_progress(progress)
    check_choice("method", method, ("auto", *registry.TABLE["sampler"]))
    axes = axes_of(model)
    _check_given(model, num, shape, labels, condition, known, numbers)
    weight = next(model.parameters())
    asked = None if method == "auto" else method
    check_precision(precision, registry.first("sampler", weight, asked))
    grid = (math.prod(shape[:-1]), shape[-1])  # a sequence is a grid of one row
    ready: list[tuple[Program, dict[str, Tensor]]] = []  # for the first batch, which follows at once

    def draw(samples: range, tick: Tick) -> Tensor:
        own_labels = as_labels(_part(labels, samples), len(samples))
        own_condition, own_known, own_numbers = (
            _part(given, samples) for given in (condition, known, numbers)
        )
        _check_given(model, len(samples), shape, own_labels, own_condition, own_known, own_numbers)
        if own_known is None:
            own_known = torch.full((len(samples), *shape, *axes), -1)
        if own_numbers is None:
            own_numbers = torch.arange(samples.start, samples.stop)
        with torch.inference_mode(), taken_back(tick) as ticked:  # less overhead for each op
            kept = own_known.to(weight.device, torch.int64).reshape(-1, *grid, *axes)
            if own_labels is not None:
                own_labels = own_labels.to(weight.device, torch.int64)
            if own_condition is not None:
                own_condition = model.on_grid(own_condition, grid)
            program, weights = ready.pop() if ready else model.lower()
            condition_map = model.condition_map(kept.clamp(min=0), own_labels, own_condition)

            def logits(codes: Tensor) -> Tensor:
                if precision is not None:
                    given = own_labels, condition_map, precision
                    return parallel.logits(program, weights, codes, *given)
                if axes:
                    return model.grid_logits(codes, own_labels, own_condition)
                return model.grid_logits(codes.squeeze(3), own_labels, own_condition).unsqueeze(4)

            if precision is not None:
                weights = {name: each.float() for name, each in weights.items()}
                condition_map = None if condition_map is None else condition_map.float()
            request = Request(
                program,
                weights,
                Draw(int(seed), own_numbers.to(weight.device, torch.int64), float(temperature), top_k, top_p),
                kept if axes else kept.unsqueeze(3),
                own_labels,
                condition=condition_map,
                logits=logits,
                precision=precision,
                progress=ticked,
            )
            backend = registry.backend("sampler", weight, name=asked, part=partial(part_of, request))
            codes: Tensor = backend.run(request)
        codes = codes.clone().view(
            len(samples), *shape, *axes
        )  # outside of inference mode: an ordinary tensor
        if codes.amin() < 0:
            sample, *position = (codes < 0).nonzero()[0].tolist()
            raise ValueError(
                f"the logits of sample {samples.start + sample} at position {tuple(position)} are NaN or "
                "have no finite maximum; want finite weights and conditioning, and a code that may be drawn"
            )
        return codes

    def batches() -> Iterator[Tensor]:
        fitting = min(num, batch_size)
        if fitting > 1:
            with torch.inference_mode():
                ready[:] = [model.lower()]
            fitting = _fitting(model, *ready[0], grid, fitting, precision)
        with shown(progress, num * math.prod((*shape, *axes))) as tick:
            yield from in_batches(lambda samples: draw(samples, tick), num, fitting)

    return batches()


def axes_of(model: Model) -> tuple[int, ...]:
    """The axes that codes have after those of the grid: one for the codes of a position, or none."""
    return () if model.num_quantizers is None else (model.num_quantizers,)


def as_labels(labels: Tensor | int | None, num: int, device: torch.device | None = None) -> Tensor | None:
    """``labels`` as they are, but an integer as the labels of ``num`` samples, int64 ``(num,)``.

    Raises:
        TypeError: ``labels`` is a bool or a float.
        ValueError: it is a negative integer.
    """
    if not isinstance(labels, (int, float, Integral)):
        return labels
    check_integer("labels", labels, 0)
    return torch.tensor(int(labels), device=device).expand(num)


@overload
def _part(value: Given, samples: range) -> Tensor | None: ...
@overload
def _part(value: GivenLabels, samples: range) -> Tensor | int | None: ...
def _part(value: GivenLabels, samples: range) -> Tensor | int | None:
    """The part of ``value`` that belongs to a batch's samples."""
    if callable(value):
        return value(samples)
    return value[samples.start : samples.stop] if isinstance(value, Tensor) else value


def _check_given(
    model: Model,
    num: int,
    shape: tuple[int, ...],
    labels: GivenLabels,
    condition: Given,
    known: Given,
    numbers: Given,
) -> None:
    """Checks what is given for ``num`` samples. What a function returns is checked batch by batch."""
    for name, value, size, minimum, end in (
        ("numbers", numbers, (num,), 0, 2**63),
        ("known", known, (num, *shape, *axes_of(model)), -1, model.num_embeddings),
    ):
        if value is not None and not callable(value):
            check_indices(name, value, end, minimum=minimum)
            if value.shape != size:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; want {size}")
    model.check_known(known)
    model.check_conditioning(num, shape, labels, condition)


def _fitting(
    model: Model,
    program: Program,
    weights: dict[str, Tensor],
    grid: tuple[int, int],
    batch_size: int,
    precision: str | None,
) -> int:
    """``batch_size``, halved until what an executor keeps fits the free memory.

    Some systems end the process instead of refusing an allocation.
    """
    free = free_memory(next(model.parameters()).device) - weight_bytes(weights)
    rows = wavefront(program, weights, *grid).rows  # side by side, if the executor draws them so
    fitting = max(1, free / sample_bytes(program, weights, grid, precision, rows))
    while batch_size > fitting:
        batch_size = -(-batch_size // 2)
    return batch_size


def sample_bytes(
    program: Program,
    weights: dict[str, Tensor],
    grid: tuple[int, int],
    precision: str | None = None,
    side_by_side: int = 1,
) -> int:
    """How many bytes an executor keeps for each sample: values, the condition, codes and noise.

    ``side_by_side`` rows of a sample are drawn at a time.
    """
    maps = [weights[t.weight or ""] for step in program.steps for t in step.terms if t.source == CONDITION]
    positions, (rows, left, right) = math.prod(grid), program.reach(*program.codes)
    size, block = _number_bytes(weights), program.block(*grid)
    unit = _TILE_BYTES // size
    numbers = program.values(*grid, unit, side_by_side)
    if maps:  # as it is given, as it is computed with, and the rows that are drawn, channels last
        channels = maps[0].shape[1]
        entries = -(-positions // program.condition_stride)
        numbers += channels * 2 * entries + side_by_side * block * -(-channels // unit) * unit
    kept = (rows + side_by_side - 1) * (left + block + right)
    codes = _COPIES * positions + kept + _NOISE_COPIES * program.num_choices
    if precision is not None:  # float32 numbers, and what they are rounded to
        size = 4 + 4
    elif _may_split(weights):  # and their pieces
        size = 4 + 6
    return numbers * size + 8 * program.num_quantizers * codes


def weight_bytes(weights: dict[str, Tensor]) -> int:
    """How many bytes an executor keeps of the weights: one after another, and packed."""
    unit, split = _TILE_BYTES // _number_bytes(weights), _may_split(weights)
    rows = 0.0
    for weight in weights.values():
        inputs = weight.shape[-2] if weight.ndim > 1 else 1
        packed = -(-inputs // 32) * 32 * 1.5 if split and weight.ndim > 1 else inputs
        outputs = weight.shape[-1]
        rows += weight.numel() // (inputs * outputs) * (inputs + packed) * -(-outputs // unit)
    return int(_TILE_BYTES * rows)


def _may_split(weights: dict[str, Tensor]) -> bool:
    """Whether the native executor may keep float32 numbers in pieces of bfloat16 too, for tiles."""
    weight = next(iter(weights.values()))
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _number_bytes(weights: dict[str, Tensor]) -> int:
    """Bytes of a number: executors compute in float32 with weights in less."""
    return max(4, next(iter(weights.values())).element_size())
