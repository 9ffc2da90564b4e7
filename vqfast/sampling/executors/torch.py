"""The cached sampler in plain PyTorch: every value is computed once, on any device.

Each step keeps the last rows of its value, zero-padded and channels last. Taps that lie side by side in a row
are then one matrix product, without a copy. The part of a step that depends on the rows above alone is
computed for a whole row at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.activations import activate
from vqfast.sampling.attention import Attention
from vqfast.sampling.executors.torch_attention import Kept
from vqfast.sampling.program import CODES, CONDITION, Phase, Step, Term, available
from vqfast.sampling.request import Request

_NOISE_ELEMENTS = 2**21  # at a time: 16 MB of float64


@dataclass
class Cache:
    """The last rows of a value, ``(rows, B, left + block + right, C)``; row ``y`` is in slot ``y % rows``.

    A block is a whole row, or, of a grid with a single long row, the columns from ``origin`` on.
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
    """Taps that lie side by side in a row, from ``(dy, dx)`` on, and their ``(count * in, out)`` matrix."""

    source: int
    dy: int
    dx: int
    count: int
    weight: Tensor | None


def _runs(term: Term, weights: dict[str, Tensor], phases: list[int], early: bool) -> Iterator[Run]:
    """The runs of the taps that can (``early``), or can't, be read when the row starts."""
    chosen = [
        i for i, tap in enumerate(term.taps) if (available(term.source, tap, phases) == Phase.ROW) == early
    ]
    while chosen:
        dy, dx = term.taps[chosen[0]]
        count = 1
        while count < len(chosen) and term.taps[chosen[count]] == (dy, dx + count):
            count += 1
        taken, chosen = chosen[:count], chosen[count:]
        weight = None if term.weight is None else weights[term.weight][taken]
        if weight is not None and term.source <= CODES:  # an entry of zeros for the code outside the grid
            weight = F.pad(weight, (0, 0, 0, 1))
        yield Run(term.source, dy, dx, count, None if weight is None else weight.flatten(0, 1).contiguous())


class _Plan:
    """The steps of a request's program, each with its runs and the cache of its value."""

    def __init__(self, request: Request) -> None:
        self.request, self.program, self.weights = request, request.program, request.weights
        self.steps, self.phases = self.program.steps, self.program.phases()
        self.block = self.program.block(*request.grid)
        self.condition = request.weight.new_zeros(0)  # of the block: (B, count, C)
        self.early_runs, self.late_runs = (
            [
                [run for term in step.terms for run in _runs(term, self.weights, self.phases[:number], early)]
                for number, step in enumerate(self.steps)
            ]
            for early in (True, False)
        )
        self.biases = [self._bias(step) for step in self.steps]
        sources = (*self.program.codes, *range(len(self.steps)))
        self.caches = {source: self._cache(source) for source in sources}
        self.kept = {
            number: Kept(step, request.known, request.weight, self.steps[step.key].channels)
            for number, step in enumerate(self.steps)
            if isinstance(step, Attention)
        }

    def _cache(self, source: int) -> Cache:
        rows, left, right = self.program.reach(source)
        size = rows, len(self.request.known), left + self.block + right
        if source <= CODES:  # outside of the grid is a code of its own, whose entries are zero
            return Cache(self.request.known.new_full(size, self.program.num_embeddings), left)
        return Cache(self.request.weight.new_zeros(*size, self.steps[source].channels), left)

    def _bias(self, step: Step | Attention) -> Tensor:
        """Bias and label bias of a step, the same at every position: ``(B, 1, width)``."""
        total = self.request.weight.new_zeros(len(self.request.known), 1, step.width)
        if step.bias is not None:
            total = total + self.weights[step.bias]
        if step.label_bias is not None:
            total = total + self.weights[step.label_bias][self.request.labels].unsqueeze(1)
        return total

    def _add(self, total: Tensor, run: Run, y: int, x: int, count: int) -> Tensor:
        """``total (B, count, width)`` plus ``run`` at positions ``x .. x + count`` of row ``y``."""
        if run.source == CONDITION:
            values = self.condition
        else:
            values = self.caches[run.source].window(y + run.dy, x + run.dx, count + run.count - 1)
        if run.weight is None:
            return total + values
        if run.source <= CODES:
            step = torch.arange(run.count, device=values.device) * (self.program.num_embeddings + 1)
            bags = (values.unfold(1, run.count, 1) + step).reshape(-1, run.count)
            sums = F.embedding_bag(bags, run.weight, mode="sum")
            return total + sums.view(-1, count, sums.shape[1])
        batch, _, channels = values.shape
        strides = (values.stride(0), values.stride(1), 1)
        windows = values.as_strided((batch, count, run.count * channels), strides, values.storage_offset())
        if count == 1:
            return torch.addmm(total[:, 0], windows[:, 0], run.weight).unsqueeze(1)
        return total + (windows.reshape(batch * count, -1) @ run.weight).view(batch, count, -1)

    def early_sums(self, number: int, y: int, x: int, count: int) -> Tensor:
        """The part of a step's sums that is known when row ``y`` starts, ``(B, count, width)``."""
        total = self.biases[number].expand(-1, count, -1)
        for run in self.early_runs[number]:
            total = self._add(total, run, y, x, count)
        return total

    def finish(self, number: int, sums: Tensor, y: int, x: int, count: int) -> None:
        """Adds the rest of a step's sums at ``count`` positions and keeps the step's value."""
        step = self.steps[number]
        if isinstance(step, Attention):
            values = (self.caches[source].window(y, x, 1)[:, 0] for source in step.sources)
            self.caches[number].window(y, x, 1)[:, 0] = self.kept[number].attend(*values)
            return
        for run in self.late_runs[number]:
            sums = self._add(sums, run, y, x, count)
        value = activate(sums, step.activation)
        if step.residual is not None:
            value = value + self.caches[step.residual].window(y, x, count)
        self.caches[number].window(y, x, count).copy_(value)

    def keep(self, y: int, x: int) -> None:
        """Keeps a position, all of whose values are known, for attentions that haven't read it yet."""
        for kept in self.kept.values():
            if not kept.step.own:
                kept.append(*(self.caches[source].window(y, x, 1)[:, 0] for source in kept.step.sources[1:]))


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W, S)``."""
    plan = _Plan(request)
    batch, height, width, num_codes = request.known.shape
    codes = torch.empty_like(request.known)
    by_phase: list[list[int]] = [[] for _ in range(Phase.CODE + num_codes)]
    for number, phase in enumerate(plan.phases):
        by_phase[phase].append(number)
    chunk = max(1, _NOISE_ELEMENTS // (batch * num_codes * request.program.num_choices))
    for y, begin in product(range(height), range(0, width, plan.block)):
        count = min(plan.block, width - begin)
        if begin > 0:
            for cache in plan.caches.values():
                cache.move(begin)
        if request.condition is not None:
            plan.condition = request.condition_of(y, begin, count).transpose(1, 2).contiguous()
        sums: list[Tensor] = []
        for number in range(len(plan.steps)):
            sums.append(plan.early_sums(number, y, begin, count))
            if plan.phases[number] == Phase.ROW:
                plan.finish(number, sums[number], y, begin, count)
        for i, x in enumerate(range(begin, begin + count)):
            for number in by_phase[Phase.POSITION]:
                plan.finish(number, sums[number][:, i : i + 1], y, x, 1)
            if i % chunk == 0:
                numbers = num_codes * (y * width + x), num_codes * min(chunk, count - i)
                noise = request.noise(*numbers)
            own = noise[:, i % chunk * num_codes :][:, :num_codes]
            for code, source in enumerate(request.program.codes):
                logits = plan.caches[len(plan.steps) - num_codes + code].window(y, x, 1)[:, 0]
                drawn = request.drawn(logits, own, code)
                known = request.known[:, y, x, code]
                codes[:, y, x, code] = drawn.where(known < 0, known)
                plan.caches[source].window(y, x, 1)[:, 0] = codes[:, y, x, code].clamp(min=0)
                for number in by_phase[Phase.CODE + code]:
                    plan.finish(number, sums[number][:, i : i + 1], y, x, 1)
            plan.keep(y, x)
            request.progress(batch * num_codes)
    return codes
