"""The naive sampler: a whole pass of the model for each position. It defines what every executor draws."""

from __future__ import annotations

from torch import Tensor

from vqfast.sampling.request import Request


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W)``."""
    batch, height, width = request.known.shape
    drawn, codes = request.known.clone(), request.known.clamp(min=0)
    for position in range(height * width):
        y, x = divmod(position, width)
        logits = request.logits(codes)[:, :, y, x]
        noise = request.draw.noise(position, 1, request.program.num_embeddings)[:, 0]
        known = request.known[:, y, x]
        drawn[:, y, x] = request.draw(logits, noise).where(known < 0, known)
        codes[:, y, x] = drawn[:, y, x].clamp(min=0)
        request.progress(batch)
    return drawn
