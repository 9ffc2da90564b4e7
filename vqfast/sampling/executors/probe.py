"""Draws of a small batch by the Triton executor, compared with the torch executor's.

The program has what the one that is about to run has, so that the same kernels run, and no others.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from vqfast.sampling.attention import Attention
from vqfast.sampling.draw import Draw
from vqfast.sampling.executors import torch as plain
from vqfast.sampling.executors.triton import order_of
from vqfast.sampling.executors.triton_plan import head_channels
from vqfast.sampling.program import CODES, CONDITION, AnyStep, Offset, Program, Step, Term, codes_of
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import raster, wavefront

_BATCH, _GRID, _WIDE_GRID = 5, (2, 3), (3, 13)  # two rows of the wide one are drawn side by side
_KNOWN = 5  # of it one column of so many is drawn, so that a wrong code makes few others differ
_NUM_EMBEDDINGS, _CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 20, 40, 24, 2
_ABOVE = tuple((dy, dx) for dy in (-3, -2, -1) for dx in range(-3, 4))
_AROUND = tuple((dy, dx) for dy in (-1, 0) for dx in (-1, 0, 1))
_NEAR: tuple[Offset, ...] = ((-1, -1), (-1, 0), (0, -1), (0, 0))
_MIXTURES, _VALUES = 5, 4  # components; codes that stand for values, few: an error then seldom changes one
_SMALLEST, _LARGEST = 4, 4096  # images: no tuning is for fewer, or distinguishes more


class Part(NamedTuple):
    """What the kernels depend on.

    Attributes:
        images: of the batch, rounded up to a power of two, as the tunings distinguish them.
        head: padded channels of an attention's head, 0 without one.
        codes: of a position.
        mixture: whether codes are drawn from mixtures.
        strided: whether a step has a stride.
        rows: drawn side by side, rounded up to a power of two.
    """

    images: int
    head: int = 0
    codes: int = 1
    mixture: bool = False
    strided: bool = False
    rows: int = 1


PARTS = (  # each tuning, and what else there is
    *(Part(1 << power) for power in range(2, 13)),
    Part(_SMALLEST, head=32),
    Part(_SMALLEST, codes=2, mixture=True, strided=True),
    *(Part(images, rows=4) for images in (4, 16, 64)),
)


def part_of(request: Request) -> Part:
    """The part that a request needs."""
    program = request.program
    images = min(_LARGEST, max(_SMALLEST, 1 << (len(request.known) - 1).bit_length()))
    return Part(
        images,
        head_channels(program),
        program.num_quantizers,
        program.num_mixtures > 0,
        any(step.stride > 1 for step in program.steps),
        1 << (order_of(request).rows - 1).bit_length(),
    )


class _Steps:
    """Collects steps with random weights, large enough for codes, labels and map to matter."""

    def __init__(self, num_embeddings: int) -> None:
        self.num_embeddings = num_embeddings
        self.steps: list[AnyStep] = []
        self.weights: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *size: int, bound: float) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = bound * (2 * torch.rand(size, generator=self.generator) - 1)
        return name

    def add(
        self,
        width: int,
        *reads: tuple[int, tuple[Offset, ...]],
        bare: int | None = None,
        by_label: bool = False,
        activation: str = "none",
        residual: int | None = None,
        stride: int = 1,
    ) -> int:
        """Appends a step that reads sources at taps, and returns its number."""
        inputs = {CONDITION: 1} | {n: s.channels for n, s in enumerate(self.steps)}
        terms = [Term(bare)] if bare is not None else []
        for source, taps in reads:
            fan_in = 1 if source <= CODES else inputs[source] * len(taps)
            rows = self.num_embeddings if source <= CODES else inputs[source]
            weight = self.random(len(taps), rows, width, bound=2 * fan_in**-0.5)
            terms.append(Term(source, taps, weight))
        labels = self.random(_NUM_CLASSES, width, bound=2) if by_label else None
        bias = self.random(width, bound=0.2)
        self.steps.append(Step(tuple(terms), width, bias, labels, activation, residual, stride))
        return len(self.steps) - 1


def probe_request(device: torch.device, dtype: torch.dtype, part: Part) -> Request:
    """Five samples of two gated layers with labels and a map: what a program can do, in every phase.

    Then come an attention and a step with a stride, if the part has them, and the logits.
    """
    own: tuple[Offset, ...] = ((0, 0),)
    num_embeddings = _VALUES if part.mixture else _NUM_EMBEDDINGS
    double, made = 2 * _CHANNELS, _Steps(num_embeddings)
    all_codes = [codes_of(number) for number in range(part.codes)]
    vertical = horizontal = made.add(_CHANNELS, *((code, own) for code in all_codes))
    for taps, left, residual in ((_ABOVE, (-3, -2, -1), False), (_AROUND, (-1, 0), True)):
        above = made.add(double, (vertical, taps))
        across = made.add(
            double,
            (horizontal, tuple((0, dx) for dx in left)),
            (above, own),
            (CONDITION, own),
            by_label=True,
            activation="gate",
        )
        vertical = made.add(double, (CONDITION, own), bare=above, by_label=True, activation="gate")
        horizontal = made.add(_CHANNELS, (across, own), residual=horizontal if residual else None)
    if part.head:
        key, value = (made.add(2 * part.head, (source, own)) for source in (horizontal, vertical))
        made.steps.append(Attention(key, key, value, 2 * part.head, heads=2, scale=0.1, own=True))
        horizontal = len(made.steps) - 1
    if part.strided:
        coarse = made.add(_CHANNELS, (horizontal, _NEAR), activation="relu", stride=2)
        horizontal = made.add(_CHANNELS, (coarse, _NEAR), (horizontal, own))
    head = made.add(_HEAD_CHANNELS, (horizontal, own), activation="relu")
    for number in range(part.codes):
        before = [(all_codes[number - 1], own)] if number else []
        made.add(3 * _MIXTURES if part.mixture else num_embeddings, (head, own), *before)
    numbers = torch.arange(_BATCH, device=device)
    grid = _GRID if part.rows == 1 else _WIDE_GRID
    condition = numbers.to(dtype).sin().view(-1, 1, 1, 1).expand(_BATCH, 1, *grid)
    known = torch.full((_BATCH, *grid, part.codes), -1, device=device)
    if part.rows > 1:
        codes = torch.arange(known.numel(), device=device).view(known.shape) % num_embeddings
        drawn = torch.arange(grid[1], device=device)[:, None] % _KNOWN == _KNOWN - 1
        known = torch.where(drawn, known, codes)

    def no_logits(codes: Tensor) -> Tensor:
        raise NotImplementedError("the probe is a program; no model stands behind it")

    return Request(
        Program(tuple(made.steps), num_embeddings, part.codes, _MIXTURES * part.mixture),
        {name: weight.to(device, dtype) for name, weight in made.weights.items()},
        Draw(0, numbers),
        known=known,
        labels=numbers % _NUM_CLASSES,
        condition=condition,
        logits=no_logits,
    )


def check(
    module: ModuleType,
    reference: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    part: Part,
) -> None:
    """Raises AssertionError if 8 of 30 codes differ in float16 or bfloat16, or any in other dtypes.

    One wrong code makes most of the later ones differ. ``reference`` isn't run: it draws from a model.
    """
    request = probe_request(device, dtype, part)
    expected = plain.run(request)
    drawn = int((request.known < 0).sum())
    allowed = 0 if dtype in (torch.float32, torch.float64) else drawn * 7 // 30
    tuning = module.tuning_of(request.weight, part.images, part.rows)
    program, grid = request.program, request.grid
    front = wavefront(program, request.weights, *grid) if part.rows > 1 else raster(program, *grid)
    differ = int((module.Sampling(request, tuning, front).draw() != expected).sum())
    if differ > allowed:
        raise AssertionError(f"{differ} of {drawn} codes are wrong with {tuning}")
