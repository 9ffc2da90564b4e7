"""The cached sampler in plain PyTorch: every value is computed once, on any device.

Each step keeps the last rows of its value, zero-padded, channels last, so that the taps of a row that stand
side by side are one matrix without a copy. What depends on rows above alone is computed for a whole row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.priors.base import CausalPrior
from vqfast.sampling.activations import activate
from vqfast.sampling.program import CODES, CONDITION, Phase, Program, Step, Term, available
from vqfast.sampling.sampler import Request

_NOISE_ELEMENTS = 2**21  # 16 MB of float64 at a time


@dataclass
class Cache:
    """The last rows of a value, ``(rows, B, left + block + right, C)``; row ``y`` is in slot ``y % rows``.

    A block is a whole row; of a single long row, some columns from ``origin`` on.
    """

    values: Tensor
    left: int
    origin: int = 0

    def window(self, y: int, x: int, count: int) -> Tensor:
        """``count`` columns from ``x`` on, which may lie in the padding."""
        first = self.left + x - self.origin
        return self.values[y % len(self.values)][:, first : first + count]

    def move(self, origin: int) -> None:
        """Goes on to the next block of a row."""
        passed = origin - self.origin
        self.values[:, :, : self.left] = self.values[:, :, passed : passed + self.left].clone()
        self.origin = origin


@dataclass
class Run:
    """Taps of a row, side by side from ``(dy, dx)`` on, and their ``(count * in, out)`` matrix."""

    source: int
    dy: int
    dx: int
    count: int
    weight: Tensor | None


def _runs(term: Term, weights: dict[str, Tensor], phases: list[Phase], row: bool) -> Iterator[Run]:
    """The term's taps that can (``row``) or can't be read when the row starts, as runs."""
    chosen = [i for i, tap in enumerate(term.taps) if (available(term.source, tap, phases) == 0) == row]
    while chosen:
        dy, dx = term.taps[chosen[0]]
        count = 1
        while count < len(chosen) and term.taps[chosen[count]] == (dy, dx + count):
            count += 1
        taken, chosen = chosen[:count], chosen[count:]
        weight = None if term.weight is None else weights[term.weight][taken]
        if weight is not None and term.source == CODES:  # a row of zeros for the code outside the grid
            weight = F.pad(weight, (0, 0, 0, 1))
        yield Run(term.source, dy, dx, count, None if weight is None else weight.flatten(0, 1).contiguous())


class _Plan:
    """A program's steps, each with its runs, for one batch."""

    def __init__(
        self, program: Program, weights: dict[str, Tensor], request: Request, condition: Tensor | None
    ) -> None:
        self.program, self.request = program, request
        self.steps, self.phases = program.steps, program.phases()
        self.block = program.block(*request.shape)
        if condition is not None:
            self.condition = condition.movedim(1, -1).contiguous()
        self.row_runs, self.runs = (
            [
                [run for term in step.terms for run in _runs(term, weights, self.phases[:number], row)]
                for number, step in enumerate(self.steps)
            ]
            for row in (True, False)
        )
        self.static = [self._static(step, weights) for step in self.steps]
        self.caches = {source: self._cache(source, weights) for source in (CODES, *range(len(self.steps)))}

    def _cache(self, source: int, weights: dict[str, Tensor]) -> Cache:
        rows, left, right = self.program.reach(source)
        size = rows, len(self.request.known), left + self.block + right
        if source == CODES:  # outside the grid stands the code of the row of zeros
            return Cache(self.request.known.new_full(size, self.program.num_embeddings), left)
        some = next(iter(weights.values()))
        return Cache(some.new_zeros(*size, self.steps[source].channels), left)

    def _static(self, step: Step, weights: dict[str, Tensor]) -> Tensor:
        """What doesn't depend on the position: bias and label, ``(B, 1, width)``."""
        some = next(iter(weights.values()))
        total = some.new_zeros(len(self.request.known), 1, step.width)
        if step.bias is not None:
            total = total + weights[step.bias]
        if step.label_bias is not None:
            total = total + weights[step.label_bias][self.request.labels].unsqueeze(1)
        return total

    def _add(self, total: Tensor, run: Run, y: int, x: int, count: int) -> Tensor:
        """``total (B, count, width)`` plus ``run`` at positions ``x .. x + count`` of row ``y``."""
        if run.source == CONDITION:
            values = self.condition[:, y, x : x + count]
        else:
            values = self.caches[run.source].window(y + run.dy, x + run.dx, count + run.count - 1)
        if run.weight is None:
            return total + values
        if run.source == CODES:
            step = torch.arange(run.count, device=values.device) * (self.program.num_embeddings + 1)
            bags = (values.unfold(1, run.count, 1) + step).reshape(-1, run.count)
            return total + F.embedding_bag(bags, run.weight, mode="sum").unflatten(0, (-1, count))
        batch, _, channels = values.shape
        strides = (values.stride(0), values.stride(1), 1)
        windows = values.as_strided((batch, count, run.count * channels), strides, values.storage_offset())
        if count == 1:
            return torch.addmm(total[:, 0], windows[:, 0], run.weight).unsqueeze(1)
        return total + (windows.reshape(batch * count, -1) @ run.weight).view(batch, count, -1)

    def row_sums(self, number: int, y: int, x: int, count: int) -> Tensor:
        """The part of a step's sums that row ``y`` knows when it starts, ``(B, count, width)``."""
        total = self.static[number].expand(-1, count, -1)
        for run in self.row_runs[number]:
            total = self._add(total, run, y, x, count)
        return total

    def write(self, number: int, sums: Tensor, y: int, x: int, count: int) -> None:
        """Finishes a step at ``count`` positions and keeps its value."""
        step = self.steps[number]
        for run in self.runs[number]:
            sums = self._add(sums, run, y, x, count)
        sums = activate(sums, step.activation)
        if step.residual is not None:
            sums = sums + self.caches[step.residual].window(y, x, count)
        self.caches[number].window(y, x, count).copy_(sums)


def run(prior: CausalPrior, request: Request) -> Tensor:
    """Codes ``(B, H, W)``."""
    program, weights = prior.lower()
    plan = _Plan(program, weights, request, prior.condition_map(request))
    batch, height, width = request.known.shape
    codes = torch.empty_like(request.known)
    by_phase = [[n for n, phase in enumerate(plan.phases) if phase == wanted] for wanted in Phase]
    chunk = max(1, _NOISE_ELEMENTS // (batch * program.num_embeddings))
    for y, begin in product(range(height), range(0, width, plan.block)):
        count = min(plan.block, width - begin)
        if begin > 0:
            for cache in plan.caches.values():
                cache.move(begin)
        sums: list[Tensor] = []
        for number in range(len(program.steps)):
            sums.append(plan.row_sums(number, y, begin, count))
            if plan.phases[number] == Phase.ROW:
                plan.write(number, sums[number], y, begin, count)
        for i, x in enumerate(range(begin, begin + count)):
            for number in by_phase[Phase.POSITION]:
                plan.write(number, sums[number][:, i : i + 1], y, x, 1)
            if i % chunk == 0:
                noise = request.draw.noise(y * width + x, min(chunk, count - i), program.num_embeddings)
            logits = plan.caches[len(program.steps) - 1].window(y, x, 1)[:, 0]
            drawn = request.draw(logits, noise[:, i % chunk])
            known = request.known[:, y, x]
            codes[:, y, x] = drawn.where(known < 0, known)
            plan.caches[CODES].window(y, x, 1)[:, 0] = codes[:, y, x].clamp(min=0)
            for number in by_phase[Phase.CODE]:
                plan.write(number, sums[number][:, i : i + 1], y, x, 1)
            request.progress(batch)
    return codes
