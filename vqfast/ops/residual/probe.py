"""A training step of two stages on inputs where a kernel may go wrong, forward and backward."""

from __future__ import annotations

from types import ModuleType

import torch

from vqfast.ops.probe import vectors_and_codebook
from vqfast.ops.quantize.probe import compare


def check(
    module: ModuleType, reference: ModuleType, device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Raises AssertionError where ``module`` computes something else than ``reference``."""
    vectors, codebook = vectors_and_codebook(device, dtype, channels)
    steps = ((each.residual_quantize, each.residual_backward) for each in (module, reference))
    compare(vectors, torch.stack([codebook, (codebook - 3) / 4]), *steps)
