"""The prior that a level of a hierarchical model brings, for those who sample priors level by level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models.hierarchy import HierarchicalVQVAE
from vqfast.sampling.draw import Draw, check_draw
from vqfast.sampling.memory import in_batches

NOISE = 1 << 22  # random numbers at a time


class LevelPrior:
    """A model's own prior of one level, which draws all positions at once, given the coarser levels.

    It has the methods of ``ConditionedPrior`` that sampling and likelihoods need.

    Args:
        model: a ``HierarchicalVQVAE`` whose levels have priors: ``"ruseckas-hierarchical"``.
        level: 0 for the coarsest.

    Raises:
        ValueError: the model's levels have no priors.

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
        self.model, self.level = model, level
        self.num_embeddings = model.codebook_sizes[level]

    @torch.no_grad()
    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, *, coarser: Sequence[Tensor] = ()
    ) -> Tensor:
        """How many bits each code takes, a mean over a grid's codes: ``(B,)``.

        Args:
            indices: int64 ``(B, *shape)``.
            labels: of no use here, since there are no classes.
            coarser: int64 ``(B, *shape)`` for each coarser level, from the coarsest.
        """
        logits = self.model.prior_logits(coarser, len(indices))
        return F.cross_entropy(logits, indices, reduction="none").flatten(1).mean(1) / math.log(2)

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
        method: str = "auto",
        batch_size: int = 256,
        progress: Callable[[int], object] = lambda codes: None,
    ) -> Tensor:
        """Draws grids of codes, int64 ``(num, *shape)``; the same for every batch size.

        Args:
            num, shape, known, numbers, temperature, top_k, top_p, seed, batch_size: see
                ``CausalPrior.sample``; the model fixes the shape.
            coarser: int64 ``(num, *shape)`` for each coarser level, from the coarsest.
            labels, method: of no use here, since there are no classes, and all positions are drawn at once.
            progress: is called with the number of codes drawn since the last call.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range, or logits are NaN.
        """
        check_draw(temperature, top_k, top_p, seed)
        numbers = torch.arange(num) if numbers is None else numbers
        device = next(self.model.parameters()).device

        def draw(samples: range) -> Tensor:
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
            progress(codes.numel())
            kept = torch.full_like(codes, -1) if known is None else known[places].to(device)
            return codes.where(kept < 0, kept)

        return torch.cat(list(in_batches(draw, num, batch_size)))
