"""Compares a training step of one stage and of two with the reference, forward and backward."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from vqfast.ops.probe import vectors_and_codebook


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError where ``module`` computes something else than ``reference``."""
    vectors, codebook = vectors_and_codebook(device, dtype, channels)
    tolerance = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-3
    for codebooks in (codebook, torch.stack([codebook, (codebook - 3) / 4])):
        got, want = (_step(each, vectors, codebooks) for each in (module, reference))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def _step(module: ModuleType, vectors: Tensor, codebooks: Tensor) -> tuple[Tensor, ...]:
    """Outputs, then gradients."""
    out = module.quantize(vectors, codebooks, 1, True)
    one = torch.ones_like(out[2])
    return (*out, *module.quantize_backward(vectors, one, one, vectors, codebooks, out[1], 1))
