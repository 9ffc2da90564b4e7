"""Sampling: checks, the draw, and the choice of an executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_indices, check_integer, check_number
from vqfast.ops import registry
from vqfast.sampling.draw import Draw
from vqfast.sampling.memory import free_memory, in_batches
from vqfast.sampling.request import Given, Model, Request

Labels = TypeVar("Labels")
_NOISE_COPIES = 8  # at its widest, while it is made


def executor(method: str, weight: Tensor) -> ModuleType:
    """The module of ``vqfast.sampling.executors`` of that name; for ``"auto"`` the registry chooses.

    Its ``run(request)`` returns codes ``(B, H, W)``, -1 where a draw has no code.

    Raises:
        ValueError: there is none of that name.
        NoBackendError: it can't run here.
    """
    check_choice("method", method, ("auto", *registry.TABLE["sampler"]))
    return registry.backend("sampler", weight, name=None if method == "auto" else method)


def sample_batches(
    prior: Model,
    num: int,
    shape: tuple[int, ...],
    labels: Given | int = None,
    condition: Given = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    known: Given = None,
    numbers: Given = None,
    method: str = "auto",
    batch_size: int = 256,
    progress: Callable[[int], object] | bool = False,
) -> Iterator[Tensor]:
    """See ``CausalPrior.sample_batches``."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape is {shape!r}; want {prior.ndim} sizes")
    shape = tuple(shape)
    for name, value in (
        ("num", num),
        ("batch_size", batch_size),
        *((f"a size of shape {shape}", s) for s in shape),
    ):
        check_integer(name, value)
    if len(shape) != prior.ndim:
        raise ValueError(f"shape is {shape}; want {prior.ndim} sizes")
    _check_draw(temperature, top_k, top_p, seed)
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress is {progress!r}; want a bool or a function")
    labels = spread(labels, num)
    given = {"labels": labels, "condition": condition, "known": known, "numbers": numbers}
    _check(prior, num, shape, **given)
    weight = next(prior.parameters())
    run, device = executor(method, weight).run, weight.device
    grid = (math.prod(shape[:-1]), shape[-1])  # a sequence is a row

    def draw(rows: range, tick: Callable[[int], object]) -> Tensor:
        part = {name: _part(value, rows) for name, value in given.items()}
        _check(prior, len(rows), shape, **part)
        labels, condition, known, numbers = part.values()
        if known is None:
            known = torch.full((len(rows), *shape), -1)
        if numbers is None:
            numbers = torch.arange(rows.start, rows.stop)
        with torch.inference_mode(), _taken_back(tick) as ticked:  # less overhead an op
            known = known.to(device, torch.int64).reshape(-1, *grid)
            if labels is not None:
                labels = labels.to(device, torch.int64)
            if condition is not None:
                condition = prior.on_grid(condition, grid)
            codes = run(
                Request(
                    *prior.lower(),
                    Draw(int(seed), numbers.to(device, torch.int64), float(temperature), top_k, top_p),
                    known,
                    labels,
                    condition=prior.condition_map(known.clamp(min=0), labels, condition),
                    logits=lambda codes: prior.grid_logits(codes, labels, condition),
                    progress=ticked,
                )
            )
        codes = codes.clone().view(len(rows), *shape)  # an ordinary tensor again
        if codes.amin() < 0:
            row, *position = (codes < 0).nonzero()[0].tolist()
            raise ValueError(
                f"the logits of sample {rows.start + row} at position {tuple(position)} are NaN or have no "
                "finite maximum; want finite weights and conditioning, and a code that may be drawn"
            )
        return codes

    def batches() -> Iterator[Tensor]:
        fitting = _fitting(prior, grid, min(num, batch_size))
        with _shown(progress, num * math.prod(shape)) as tick:
            yield from in_batches(lambda rows: draw(rows, tick), num, fitting)

    return batches()


def _check_draw(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
    check_number("temperature", temperature, minimum=0, maximum=1e300)  # times the noise it is finite
    check_integer("top_k", top_k, optional=True)
    check_number("top_p", top_p, above=0, maximum=1, optional=True)
    check_integer("seed", seed, 0, 2**64 - 1)


def spread(labels: Labels | int, num: int, device: torch.device | None = None) -> Labels | Tensor:
    """``labels``; an integer as the labels of ``num`` samples.

    Raises:
        TypeError: labels are a bool or a float.
    """
    if not isinstance(labels, (int, float, Integral)):
        return labels
    check_integer("labels", labels, 0)
    return torch.tensor(int(labels), device=device).expand(num)


def _part(value: Given, rows: range) -> Tensor | None:
    if callable(value):
        return value(rows)
    return None if value is None else value[rows.start : rows.stop]


def _check(
    prior: Model,
    count: int,
    shape: tuple[int, ...],
    labels: Given,
    condition: Given,
    known: Given,
    numbers: Given,
) -> None:
    """Checks what is given for ``count`` samples; a function's turn comes batch by batch."""
    for name, value, wanted, least, end in (
        ("numbers", numbers, (count,), 0, 2**63),
        ("known", known, (count, *shape), -1, prior.num_embeddings),
    ):
        if value is not None and not callable(value):
            check_indices(name, value, end, minimum=least)
            if value.shape != wanted:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; want {wanted}")
    prior.check_known(known)
    prior.check_conditioning(count, shape, labels, condition)


def _fitting(prior: Model, grid: tuple[int, int], batch_size: int) -> int:
    """``batch_size``, halved until what a sampler keeps fits: a system may kill where it should refuse."""
    if batch_size == 1:
        return 1
    parameter = next(prior.parameters())
    with torch.inference_mode():
        kept = prior.lower()[0].values(*grid) * parameter.element_size()
    kept += 8 * (math.prod(grid) + _NOISE_COPIES * prior.num_embeddings)
    most = free_memory(parameter.device) / kept
    while batch_size > max(1, most):
        batch_size = -(-batch_size // 2)
    return batch_size


@contextmanager
def _taken_back(tick: Callable[[int], object]) -> Iterator[Callable[[int], object]]:
    """``tick``; on an error it is told of as many codes less."""
    done = 0

    def count(positions: int) -> None:
        nonlocal done
        done += positions
        tick(positions)

    try:
        yield count
    except BaseException:
        tick(-done)
        raise


@contextmanager
def _shown(progress: Callable[[int], object] | bool, total: int) -> Iterator[Callable[[int], object]]:
    if progress is True:
        from tqdm import tqdm

        with tqdm(total=total, unit="code", unit_scale=True) as bar:
            yield bar.update
    else:
        yield progress or (lambda positions: None)
