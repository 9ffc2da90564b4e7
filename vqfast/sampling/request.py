"""What sampling knows of a model of codes, and what an executor gets of it for one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vqfast.sampling.draw import Draw
from vqfast.sampling.mixture import draw_value
from vqfast.sampling.program import Program

# A tensor for all samples, or a function that is given a batch's samples as a range within 0..num - 1 and
# returns their part.
Given = Tensor | Callable[[range], Tensor] | None
GivenLabels = Tensor | int | Callable[[range], Tensor | int] | None


class Model(Protocol):
    """A model of codes that can be sampled; every prior is one."""

    ndim: int  # axes of a grid of codes, 1 or 2
    num_embeddings: int
    num_quantizers: int | None  # codes of a position, the last axis of codes; None: one, without an axis

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Its weights; the first one says the device and the dtype."""
        ...

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """The sampling program and the weights that it names, in the model's dtype and on its device."""
        ...

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """Logits from the model itself.

        Codes ``(B, H, W)`` give ``(B, K, H, W)``; codes ``(B, H, W, num_quantizers)`` give that axis too.
        """
        ...

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """The user's ``condition`` as ``grid_logits`` takes it."""
        ...

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """The map that the program reads as ``CONDITION``, in the model's dtype.

        ``(B, C, H, W)``; of a program with ``condition_stride`` its last size is W divided by that, rounded
        up.
        """
        ...

    def check_known(self, known: Given) -> None:
        """Raises ValueError if a code that the model can't draw isn't known."""
        ...

    def check_conditioning(
        self, num: int, shape: tuple[int, ...], labels: GivenLabels, condition: Given
    ) -> None:
        """Raises TypeError or ValueError unless ``labels`` and ``condition`` are what the model takes."""


@dataclass
class Request:
    """One batch for an executor. All tensors are on the model's device.

    Attributes:
        program: what to run.
        weights: the tensors that the program names; with a precision float32, as the condition is.
        draw: how a code is drawn from logits.
        known: int64 ``(B, H, W, S)``, codes to keep; -1 where to draw. S is ``program.num_quantizers``.
        labels: int64 ``(B,)``, or ``None``.
        condition: the map that the program reads as ``CONDITION``, see ``Model.condition_map``; or ``None``.
        logits: the model itself, codes ``(B, H, W, S)`` to logits ``(B, K, H, W, S)``, or to the parameters
            of mixtures; with a precision the program's. Only the reference uses it.
        precision: of products, see ``precision.rounded``.
        progress: is called with the number of codes drawn since the last call.
    """

    program: Program
    weights: dict[str, Tensor]
    draw: Draw
    known: Tensor
    labels: Tensor | None
    condition: Tensor | None
    logits: Callable[[Tensor], Tensor]
    precision: str | None = None
    progress: Callable[[int], object] = lambda codes: None

    def noise(self, first: int, count: int) -> Tensor:
        """What ``drawn`` needs of ``count`` codes from number ``first`` on: float64 ``(B, count, n)``."""
        mixture = self.program.num_mixtures > 0
        return self.draw.noise(first, count, self.program.num_choices + mixture)

    def drawn(self, outputs: Tensor, noise: Tensor, code: int) -> Tensor:
        """A code of each sample, int64 ``(B,)``; -1 where none can be drawn.

        Args:
            outputs: ``(B, K)`` logits, or the ``(B, 3 M)`` parameters of a mixture.
            noise: ``(B, S, n)``, of all codes of the position.
            code: which of them is drawn.
        """
        if not self.program.num_mixtures:
            return self.draw(outputs, noise[:, code])
        return draw_value(self.draw, outputs, noise[:, 0], noise[:, code], self.program.num_embeddings)

    def condition_of(self, y: int, x: int, count: int) -> Tensor:
        """The condition of ``count`` columns of row ``y`` from ``x`` on: ``(B, C, count)``."""
        assert self.condition is not None
        row, stride = self.condition[:, :, y], self.program.condition_stride
        if stride == 1:
            return row[:, :, x : x + count]
        return row.index_select(2, torch.arange(x, x + count, device=row.device) // stride)

    @property
    def grid(self) -> tuple[int, int]:
        """``(H, W)``."""
        _, height, width, _ = self.known.shape
        return height, width

    @property
    def weight(self) -> Tensor:
        """One of the weights: the device and the dtype of all."""
        return next(iter(self.weights.values()))
