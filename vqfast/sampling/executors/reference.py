"""The naive sampler: a whole pass of the model for each code. It defines what every executor draws."""

from __future__ import annotations

from itertools import product

from torch import Tensor

from vqfast.sampling.request import Request


def run(request: Request) -> Tensor:
    """Codes ``(B, H, W, S)``."""
    batch, *sizes = request.known.shape
    drawn, codes = request.known.clone(), request.known.clamp(min=0)
    for number, (y, x, code) in enumerate(product(*map(range, sizes))):
        logits = request.logits(codes)[:, :, y, x, code]
        noise = request.noise(number - code, sizes[2])
        known = request.known[:, y, x, code]
        drawn[:, y, x, code] = request.drawn(logits, noise, code).where(known < 0, known)
        codes[:, y, x, code] = drawn[:, y, x, code].clamp(min=0)
        request.progress(batch)
    return drawn
