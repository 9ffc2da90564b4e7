"""What every prior over grids of codes can do."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import check_indices, check_integer
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.sampling.program import CONDITION, Program, ProgramBuilder, Term
from vqfast.sampling.request import Given
from vqfast.sampling.sampler import sample_batches, spread


def pointwise(in_channels: int, out_channels: int, activation: str = "none") -> MaskedConv2d:
    """A 1x1 convolution."""
    return MaskedConv2d(in_channels, out_channels, 1, mask_type="B", activation=activation)


class Conditioning(nn.Module):
    """A bias that depends on the class label, the conditioning map, or both."""

    def __init__(self, width: int, num_classes: int | None, condition_channels: int) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes, width) if num_classes else None
        self.condition = nn.Conv2d(condition_channels, width, 1, bias=False) if condition_channels else None

    def forward(self, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """``(B,)``, ``(B, C, H, W)`` -> ``(B, width, 1, 1)`` without a map, else ``(B, width, H, W)``."""
        biases = []
        if self.labels is not None:
            biases.append(self.labels(labels)[:, :, None, None])
        if self.condition is not None:
            biases.append(self.condition(condition))
        return sum(biases[1:], biases[0]) if biases else None

    def lower(self, builder: ProgramBuilder) -> tuple[list[Term], Tensor | None]:
        """The map's terms and the labels' table."""
        terms = [] if self.condition is None else [builder.dense(CONDITION, self.condition.weight)]
        return terms, None if self.labels is None else self.labels.weight


class CausalPrior(nn.Module):
    """An autoregressive model of codes in raster order: ``p(codes) = prod p(code | those before it)``.

    Args:
        num_embeddings: K, the number of codes.
        num_classes: how many class labels condition the prior; ``None`` for none.
        condition_channels: channels of a conditioning map on the codes' grid; 0 for none.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range.
    """

    ndim = 2

    def __init__(self, num_embeddings: int, num_classes: int | None, condition_channels: int) -> None:
        super().__init__()
        self.num_embeddings, self.num_classes = num_embeddings, num_classes
        self.condition_channels = condition_channels
        self._require(num_embeddings=num_embeddings)
        if num_classes is not None:
            self._require(num_classes=num_classes)
        check_integer("condition_channels", condition_channels, 0)

    @staticmethod
    def _require(**sizes: int) -> None:
        for name, value in sizes.items():
            check_integer(name, value)

    @abstractmethod
    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """Logits ``(B, K, H, W)`` of checked codes ``(B, H, W)``; a prior of sequences has ``H = 1``."""

    @abstractmethod
    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """The sampling program and the weights that it names, in the prior's dtype and on its device."""

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """The conditioning map in the prior's dtype, ``(B, condition_channels, H, W)``."""
        return condition.to(next(self.parameters())).reshape(condition.shape[0], -1, *grid)

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """The map ``(B, C, H, W)`` that the program reads: the conditioning map itself."""
        return condition

    def check_known(self, known: Given) -> None:
        """Raises ValueError where a code that must be known isn't."""

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments; a kind of prior adds its own."""
        names = ("num_embeddings", "num_classes", "condition_channels")
        return {name: getattr(self, name) for name in names}

    def check_conditioning(
        self, batch: int, spatial: tuple[int, ...], labels: Given, condition: Given
    ) -> None:
        """Raises TypeError or ValueError unless labels and condition are what this prior takes.

        Of those that are functions (see ``sample_batches``) only whether it takes any.
        """
        if (labels is not None) != (self.num_classes is not None):
            raise ValueError(
                f"labels are {'missing' if labels is None else 'given'}; this prior has "
                + (f"{self.num_classes} classes" if self.num_classes else "no classes")
            )
        if labels is not None and not callable(labels):
            check_indices("labels", labels, self.num_classes or 0)
            if labels.shape != (batch,):
                raise ValueError(f"labels has shape {tuple(labels.shape)}; want ({batch},)")
        wanted = (batch, self.condition_channels, *spatial) if self.condition_channels else None
        if callable(condition) and wanted is not None:
            return
        if condition is not None and not isinstance(condition, Tensor):
            raise TypeError(f"condition is a {type(condition).__name__}; want a tensor")
        got = None if condition is None else tuple(condition.shape)
        if got != wanted:
            raise ValueError(f"condition has shape {got}; want {wanted}")

    def forward(
        self, indices: Tensor, labels: Tensor | int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Logits of every code given those before it.

        Args:
            indices: integer ``(B, H, W)`` (``(B, T)`` for a prior of sequences), in ``0..K - 1``.
            labels: integer ``(B,)``, or one for all, if the prior has classes.
            condition: ``(B, condition_channels, H, W)``, if the prior takes a map.

        Returns:
            ``(B, K, H, W)``, or ``(B, K, T)``.

        Raises:
            TypeError: indices or labels aren't integers.
            ValueError: a shape is wrong or a value out of range.
        """
        check_indices("indices", indices, self.num_embeddings)
        if indices.ndim != self.ndim + 1 or indices.numel() == 0:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want (B, {self.ndim} sizes), not empty"
            )
        spatial, labels = tuple(indices.shape[1:]), spread(labels, indices.shape[0], indices.device)
        self.check_conditioning(indices.shape[0], spatial, labels, condition)
        grid = (math.prod(spatial[:-1]), spatial[-1])  # a sequence is a row
        if labels is not None:
            labels = labels.long()
        if condition is not None:
            condition = self.on_grid(condition, grid)
        logits = self.grid_logits(indices.long().reshape(-1, *grid), labels, condition)
        return logits.reshape(-1, self.num_embeddings, *spatial)

    if TYPE_CHECKING:
        __call__ = forward

    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """``-log2 p(codes)`` a code, for each sample: ``(B,)``; arguments as ``forward``."""
        nats = F.cross_entropy(self(indices, labels, condition), indices.long(), reduction="none")
        return nats.flatten(1).mean(1) / math.log(2)

    def sample(
        self,
        num: int,
        shape: tuple[int, ...],
        labels: Tensor | int | None = None,
        condition: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        known: Tensor | None = None,
        numbers: Tensor | None = None,
        method: str = "auto",
        batch_size: int = 256,
        progress: Callable[[int], object] | bool = False,
    ) -> Tensor:
        """Draws grids of codes.

        Sample ``i`` of a seed is the same whatever the batch, the device and the method (up to logits that
        agree to rounding).

        Args:
            num: how many.
            shape: ``(H, W)``, or ``(T,)`` for a prior of sequences.
            labels: integer ``(num,)``, or one for all.
            condition: ``(num, condition_channels, *shape)``.
            temperature: divides the logits, up to 1e300; 0 takes the most likely code.
            top_k: keeps the k most likely codes (and those tied with the last).
            top_p: keeps the fewest codes, most likely first, whose probabilities add up to it.
            seed: in ``0..2^64 - 1``.
            known: integer ``(num, *shape)``: codes to keep, -1 where to sample. Codes before a position
                condition it; those after can't, the raster order being what it is.
            numbers: integer ``(num,)``: which samples of the seed; ``0..num - 1`` by default.
            method: the executor: ``"auto"``, ``"native"``, ``"triton"``, ``"torch"`` or ``"reference"`` (the
                model's own forward once a position).
            batch_size: how many at a time; halved as often as it takes to fit the memory.
            progress: ``True`` shows a bar (tqdm); a function is called with the number of codes drawn since
                the last call, a negative one when a batch that didn't fit begins again.

        Returns:
            int64 ``(num, *shape)``.

        Raises:
            TypeError: an argument isn't an integer, or not the number or tensor that it should be.
            ValueError: an argument is out of range, or a position's logits are NaN or have no finite
                maximum (some may be ``-inf``: those codes are never drawn).
        """
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        options |= {"method": method, "batch_size": batch_size, "progress": progress}
        given: dict[str, Any] = {"labels": labels, "condition": condition, "known": known, "numbers": numbers}
        return torch.cat(list(sample_batches(self, num, shape, **given, **options)))

    def sample_batches(self, num: int, shape: tuple[int, ...], **options: Any) -> Iterator[Tensor]:
        """The same samples in batches, each as soon as it is finished: what doesn't fit the memory at once.

        Args:
            num, shape: see ``sample``.
            options: those of ``sample``; but labels, condition, known and numbers may each be a function that
                gets a batch's rows, a ``range`` within ``0..num - 1``, and returns their part.

        Returns:
            An iterator of int64 ``(B, *shape)``, where ``B`` is ``batch_size`` but in the last batch and
            where the memory allows less only.

        Raises:
            TypeError, ValueError: see ``sample``; of what a function returns, when its batch's turn comes.
        """
        return sample_batches(self, num, shape, **options)
