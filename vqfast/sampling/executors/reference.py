"""The naive sampler: the model's own forward once a position. The definition of every other executor."""

from __future__ import annotations

from torch import Tensor

from vqfast.priors.base import CausalPrior
from vqfast.sampling.sampler import Request


def run(prior: CausalPrior, request: Request) -> Tensor:
    """Codes ``(B, H, W)``."""
    batch, height, width = request.known.shape
    drawn, codes = request.known.clone(), request.known.clamp(min=0)
    for position in range(height * width):
        y, x = divmod(position, width)
        logits = prior.grid_logits(codes, request.labels, request.condition)[:, :, y, x]
        noise = request.draw.noise(position, 1, prior.num_embeddings)[:, 0]
        known = request.known[:, y, x]
        drawn[:, y, x] = request.draw(logits, noise).where(known < 0, known)
        codes[:, y, x] = drawn[:, y, x].clamp(min=0)
        request.progress(batch)
    return drawn
