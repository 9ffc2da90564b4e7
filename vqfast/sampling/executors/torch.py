"""The cached sampler in plain PyTorch: every value is computed once, on any device.

Each step keeps the last rows of its value, zero-padded and channels last. Taps that lie side by side in a row
are then one matrix product, without a copy. The part of a step that depends on the rows above alone is
computed for a whole row at once. Of a step with a stride only the positions where it isn't zero are kept and
computed; positions are numbered on the grid of codes all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.activations import activate
from vqfast.sampling.attention import Attention
from vqfast.sampling.executors.torch_attention import Kept
from vqfast.sampling.precision import rounded
from vqfast.sampling.program import CODES, CONDITION, Phase, Step, Term, available
from vqfast.sampling.request import Request

_NOISE_ELEMENTS = 2**21  # at a time: 16 MB of float64


@dataclass
class Cache:
    """The last rows of a value, ``(rows, B, left + block + right, C)``: each ``stride``-th row and column.

    Row ``y`` is in slot ``y // stride % rows``. A block is a whole row, or, of a grid with a single long row,
    the columns from ``origin`` on.
    """

    values: Tensor
    left: int
    stride: int = 1
    origin: int = 0

    def window(self, y: int, x: int, count: int) -> Tensor:
        """``count`` columns that are kept, from ``x`` on; they may lie in the padding."""
        first = self.left + (x - self.origin) // self.stride
        return self.values[y // self.stride % len(self.values)][:, first : first + count]

    def move(self, origin: int) -> None:
        """Goes on to the next block of a row."""
        passed = (origin - self.origin) // self.stride
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


def _runs(
    term: Term, strides: tuple[int, int], weights: dict[str, Tensor], phases: list[int], early: bool
) -> Iterator[Run]:
    """The runs of the taps that can (``early``), or can't, be read when the row starts.

    If the source and the step haven't the same stride, which ``strides`` says, each tap is a run.
    """
    chosen = [
        i for i, tap in enumerate(term.taps) if (available(term.source, tap, phases) == Phase.ROW) == early
    ]
    while chosen:
        dy, dx = term.taps[chosen[0]]
        count = 1
        while (
            strides[0] == strides[1]
            and count < len(chosen)
            and term.taps[chosen[count]] == (dy, dx + count * strides[0])
        ):
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
        self.by_phase: list[list[int]] = [[] for _ in range(Phase.CODE + self.program.num_quantizers)]
        for number, phase in enumerate(self.phases):
            self.by_phase[phase].append(number)
        self.condition = request.weight.new_zeros(0)  # of the block: (B, count, C)
        self.early_runs, self.late_runs = (
            [self._runs(number, early) for number in range(len(self.steps))] for early in (True, False)
        )
        self.biases = [self._bias(step) for step in self.steps]
        sources = (*self.program.codes, *range(len(self.steps)))
        self.caches = {source: self._cache(source) for source in sources}
        self.kept = {
            number: Kept(step, request.known, request.weight, self.steps[step.key].channels)
            for number, step in enumerate(self.steps)
            if isinstance(step, Attention)
        }

    def _runs(self, number: int, early: bool) -> list[Run]:
        step, phases = self.steps[number], self.phases[:number]
        runs = [
            run
            for term in step.terms
            for run in _runs(
                term, (step.stride, self.program.stride_of(term.source)), self.weights, phases, early
            )
        ]
        for run in runs:
            if run.source > CODES and run.weight is not None:
                run.weight = self._rounded(run.weight)
        return runs

    def _rounded(self, factor: Tensor) -> Tensor:
        return rounded(factor, self.request.precision)

    def _cache(self, source: int) -> Cache:
        batch = len(self.request.known)
        if source <= CODES:  # outside of the grid is a code of its own, whose entries are zero
            rows, left, right = self.program.reach(source)
            size = rows, batch, left + self.block + right
            return Cache(self.request.known.new_full(size, self.program.num_embeddings), left)
        (rows, left, right), step = self.program.strided_reach(source), self.steps[source]
        columns = left + -(-self.block // step.stride) + right
        return Cache(self.request.weight.new_zeros(rows, batch, columns, step.channels), left, step.stride)

    def _bias(self, step: Step | Attention) -> Tensor:
        """Bias and label bias of a step, the same at every position: ``(B, 1, width)``."""
        total = self.request.weight.new_zeros(len(self.request.known), 1, step.width)
        if step.bias is not None:
            total = total + self.weights[step.bias]
        if step.label_bias is not None:
            total = total + self.weights[step.label_bias][self.request.labels].unsqueeze(1)
        return total

    def _add_strided(self, total: Tensor, run: Run, stride: int, y: int, x: int) -> Tensor:
        """``_add`` for a source with another stride: some positions find a value, the others zeros."""
        read, width = self.program.stride_of(run.source), total.shape[1]
        every = read // math.gcd(read, stride)
        first = [j for j in range(min(every, width)) if (x + j * stride + run.dx) % read == 0]
        if (y + run.dy) % read or not first:
            return total
        count, apart = -(-(width - first[0]) // every), stride * every // read
        source = self.caches[run.source]
        column = x + first[0] * stride + run.dx
        values = source.window(y + run.dy, column, 1 + (count - 1) * apart)[:, ::apart]
        assert run.weight is not None
        looked_up = run.source <= CODES
        summand = F.embedding(values, run.weight) if looked_up else self._rounded(values) @ run.weight
        total = total.clone()
        total[:, first[0] :: every] += summand
        return total

    def _add(self, total: Tensor, run: Run, stride: int, y: int, x: int) -> Tensor:
        """``total (B, count, width)`` plus ``run`` at ``count`` positions of row ``y``, from ``x`` on."""
        count = total.shape[1]
        if run.source == CONDITION:
            values = self.condition[:, ::stride]
        elif self.program.stride_of(run.source) != stride:
            return self._add_strided(total, run, stride, y, x)
        else:
            values = self.caches[run.source].window(y + run.dy, x + run.dx, count + run.count - 1)
        if run.weight is None:
            return total + values
        if run.source <= CODES:
            step = torch.arange(run.count, device=values.device) * (self.program.num_embeddings + 1)
            bags = (values.unfold(1, run.count, 1) + step).reshape(-1, run.count)
            sums = F.embedding_bag(bags, run.weight, mode="sum")
            return total + sums.view(-1, count, sums.shape[1])
        values = self._rounded(values)
        batch, _, channels = values.shape
        strides = (values.stride(0), values.stride(1), 1)
        windows = values.as_strided((batch, count, run.count * channels), strides, values.storage_offset())
        if count == 1:
            return torch.addmm(total[:, 0], windows[:, 0], run.weight).unsqueeze(1)
        return total + (windows.reshape(batch * count, -1) @ run.weight).view(batch, count, -1)

    def early_sums(self, number: int, y: int, x: int, count: int) -> Tensor:
        """The part of a step's sums that is known when row ``y`` starts, ``(B, positions, width)``."""
        stride = self.steps[number].stride
        total = self.biases[number].expand(-1, -(-count // stride), -1)
        for run in self.early_runs[number]:
            total = self._add(total, run, stride, y, x)
        return total

    def finish(self, number: int, sums: Tensor, y: int, x: int) -> None:
        """Adds the rest of a step's sums ``(B, positions, width)`` and keeps the step's value."""
        step, count = self.steps[number], sums.shape[1]
        if isinstance(step, Attention):
            values = (self.caches[source].window(y, x, 1)[:, 0] for source in step.sources)
            self.caches[number].window(y, x, 1)[:, 0] = self.kept[number].attend(*values)
            return
        for run in self.late_runs[number]:
            sums = self._add(sums, run, step.stride, y, x)
        value = activate(sums, step.activation)
        if step.residual is not None:
            value = value + self.caches[step.residual].window(y, x, count)
        self.caches[number].window(y, x, count).copy_(value)

    def finish_phase(self, phase: int, sums: dict[int, Tensor], y: int, x: int) -> None:
        """Finishes the steps of a phase at a position, those that it is a position of."""
        for number in self.by_phase[phase]:
            stride = self.steps[number].stride
            if y % stride == x % stride == 0:
                i = x % self.block // stride
                self.finish(number, sums[number][:, i : i + 1], y, x)

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
    chunk = max(1, _NOISE_ELEMENTS // (batch * num_codes * request.program.num_choices))
    for y, begin in product(range(height), range(0, width, plan.block)):
        count = min(plan.block, width - begin)
        if begin > 0:
            for cache in plan.caches.values():
                cache.move(begin)
        if request.condition is not None:
            plan.condition = request.condition_of(y, begin, count).transpose(1, 2).contiguous()
        sums: dict[int, Tensor] = {}
        for number, step in enumerate(plan.steps):
            if y % step.stride:
                continue
            sums[number] = plan.early_sums(number, y, begin, count)
            if plan.phases[number] == Phase.ROW:
                plan.finish(number, sums[number], y, begin)
        for i, x in enumerate(range(begin, begin + count)):
            plan.finish_phase(Phase.POSITION, sums, y, x)
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
                plan.finish_phase(Phase.CODE + code, sums, y, x)
            plan.keep(y, x)
            request.progress(batch * num_codes)
    return codes
