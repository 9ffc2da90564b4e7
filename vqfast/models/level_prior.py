"""The prior that a level of a hierarchical model brings, for those who sample priors level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_choice, check_indices, check_integer
from vqfast.models.hierarchy import HierarchicalVQVAE
from vqfast.ops import registry
from vqfast.sampling.draw import Draw, check_draw
from vqfast.sampling.memory import in_batches
from vqfast.sampling.precision import check_precision
from vqfast.sampling.progress import Tick, check_progress, shown

NOISE = 1 << 22  # random numbers at a time


class LevelPrior:
    """A model's own prior of one level, which draws all positions at once, given the coarser levels.

    It has the methods of ``ConditionedPrior`` that sampling and likelihoods need.

    Args:
        model: a ``HierarchicalVQVAE`` whose levels have priors: ``"ruseckas-hierarchical"``.
        level: 0 for the coarsest.

    Raises:
        TypeError, ValueError: the model's levels have no priors, or it has no such level.

    Example:
        >>> model = vqfast.HierarchicalVQVAE.named(
        ...     "ruseckas-hierarchical", num_levels=2, hidden_channels=32, image_size=8
        ... ).eval()
        >>> top = LevelPrior(model, 0).sample(3, (4, 4))
        >>> LevelPrior(model, 1).sample(3, (8, 8), coarser=[top], seed=1).shape
        torch.Size([3, 8, 8])
    """

    num_classes: int | None = None

    def __init__(self, model: HierarchicalVQVAE, level: int) -> None:
        if not model.has_priors:
            raise ValueError(f"architecture is {model.architecture!r}; want 'ruseckas-hierarchical'")
        check_integer("level", level, 0, len(model.codebook_sizes) - 1)
        self.model, self.level = model, level
        self.num_embeddings = model.codebook_sizes[level]

    @torch.no_grad()
    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, *, coarser: Sequence[Tensor] = ()
    ) -> Tensor:
        """How many bits each code takes, a mean over a grid's codes: ``(B,)``.

        Args:
            indices: int64 ``(B, *shape)``.
            labels: None, since there are no classes.
            coarser: int64 ``(B, *shape)`` for each coarser level, from the coarsest.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or range.
        """
        check_indices("indices", indices, self.num_embeddings)
        self._check(len(indices), labels, coarser)
        logits = self.model.prior_logits(coarser, len(indices))
        if indices.shape[1:] != logits.shape[2:]:
            wanted = ("B", *logits.shape[2:])
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want ({', '.join(map(str, wanted))})"
            )
        nats = F.cross_entropy(logits, indices.long(), reduction="none")
        return nats.flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def sample(
        self,
        num: int,
        shape: tuple[int, ...],
        *,
        coarser: Sequence[Tensor] = (),
        labels: Tensor | int | None = None,
        known: Tensor | None = None,
        numbers: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        precision: str | None = None,
        method: str = "auto",
        batch_size: int = 256,
        progress: Tick | bool = False,
    ) -> Tensor:
        """Draws grids of codes, int64 ``(num, *shape)``; the same for every batch size.

        Args:
            num, shape, known, numbers, temperature, top_k, top_p, seed, batch_size: see
                ``CausalPrior.sample``; the model fixes the shape.
            coarser: int64 ``(num, *shape)`` for each coarser level, from the coarsest.
            labels: None, since there are no classes.
            precision, method: make no difference, since all positions are drawn at once.
            progress: see ``CausalPrior.sample``.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range, or logits are NaN.
        """
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape is {shape!r}; want a shape such as (4, 4)")
        check_integer("num", num)
        check_integer("batch_size", batch_size)
        check_draw(temperature, top_k, top_p, seed)
        check_progress(progress)
        check_precision(precision, method)
        check_choice("method", method, ("auto", *registry.TABLE["sampler"]))
        self._check(num, labels, coarser)
        for name, given, size, minimum, end in (
            ("numbers", numbers, (num,), 0, 2**63),
            ("known", known, (num, *shape), -1, self.num_embeddings),
        ):
            if given is not None:
                check_indices(name, given, end, minimum=minimum)
                if given.shape != size:
                    raise ValueError(f"{name} has shape {tuple(given.shape)}; want {size}")
        numbers = torch.arange(num) if numbers is None else numbers
        device = next(self.model.parameters()).device

        def draw(samples: range, tick: Tick) -> Tensor:
            places = slice(samples.start, samples.stop)
            logits = self.model.prior_logits([grid[places].to(device) for grid in coarser], len(samples))
            if tuple(logits.shape[2:]) != tuple(shape):
                raise ValueError(f"shape is {tuple(shape)}; want {tuple(logits.shape[2:])}, the model's")
            drawing = Draw(seed, numbers[places].to(device), temperature, top_k, top_p)
            scores = logits.flatten(2).movedim(1, 2)  # (B, P, K)
            parts, count = [], max(1, NOISE // (len(samples) * self.num_embeddings))
            for first in range(0, scores.shape[1], count):
                part = scores[:, first : first + count]
                noise = drawing.noise(first, part.shape[1], self.num_embeddings)
                parts.append(drawing(part.flatten(0, 1), noise.flatten(0, 1)).view(part.shape[:2]))
            codes = torch.cat(parts, 1).view(len(samples), *shape)
            if codes.amin() < 0:
                raise ValueError("the logits are NaN or have no finite maximum; want finite weights")
            tick(codes.numel())
            kept = torch.full_like(codes, -1) if known is None else known[places].to(device)
            return codes.where(kept < 0, kept)

        with shown(progress, num * math.prod(shape)) as tick:
            return torch.cat(list(in_batches(lambda samples: draw(samples, tick), num, batch_size)))

    def _check(self, num: int, labels: Tensor | int | None, coarser: Sequence[Tensor]) -> None:
        """Raises TypeError or ValueError where labels are given, or coarser isn't a grid a level and item."""
        if labels is not None:
            raise ValueError("labels is given; want None, since the prior has no classes")
        if isinstance(coarser, Tensor) or not isinstance(coarser, Sequence):
            raise TypeError(f"coarser is a {type(coarser).__name__}; want a list, one tensor for each level")
        if len(coarser) != self.level:
            raise ValueError(f"coarser has {len(coarser)} levels; want {self.level}")
        for level, codes in enumerate(coarser):
            check_indices(f"coarser[{level}]", codes, self.model.codebook_sizes[level])
            if len(codes) != num:
                raise ValueError(f"coarser[{level}] has {len(codes)} grids; want {num}, one for each item")
