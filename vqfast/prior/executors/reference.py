"""The naive sampler: the model's own forward once a position. The definition of every other executor."""

from __future__ import annotations

from torch import Tensor

from vqfast.prior.base import CausalPrior
from vqfast.prior.sampler import Request


def run(prior: CausalPrior, request: Request) -> Tensor:
    """Codes ``(B, H, W)``."""
    batch, height, width = request.known.shape
    codes = request.known.clamp(min=0)
    for position in range(height * width):
        y, x = divmod(position, width)
        logits = prior.grid_logits(codes, request.labels, request.condition)[:, :, y, x]
        noise = request.draw.noise(position, 1, prior.num_embeddings)[:, 0]
        drawn = request.draw(logits, noise)
        known = request.known[:, y, x]
        codes[:, y, x] = drawn.where(known < 0, known)
        request.progress(batch)
    return codes
