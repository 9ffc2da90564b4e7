"""A training step on inputs where a kernel may go wrong, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from vqfast.ops.probe import vectors_and_codebook


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError where ``module`` computes something else than ``reference``."""
    steps = ((each.quantize, each.quantize_backward) for each in (module, reference))
    compare(*vectors_and_codebook(device, dtype, channels), *steps)


def compare(
    vectors: Tensor, codebooks: Tensor, *steps: tuple[Callable[..., tuple[Tensor, ...]], ...]
) -> None:
    """Raises AssertionError where two pairs of forward and backward differ."""
    runs = []
    for forward, backward in steps:
        out = forward(vectors, codebooks, 1, True)
        one = torch.ones_like(out[2])
        runs.append((*out, *backward(vectors, one, one, vectors, codebooks, out[1], 1)))
    tolerance = 2e-2 if vectors.dtype in (torch.bfloat16, torch.float16) else 1e-3
    for got, want in zip(*runs, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
