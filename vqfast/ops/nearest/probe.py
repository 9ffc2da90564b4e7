"""Nearest codes on inputs where a kernel may go wrong: ties to the lowest index, distances to 1e-6."""

from __future__ import annotations

from types import ModuleType

import torch

from vqfast.ops.probe import vectors_and_codebook

PARTS = (None,)  # all that there is to compare: calls don't differ in what they need


def check(
    module: ModuleType,
    reference: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    _: None,
) -> None:
    """Raises AssertionError where ``module`` chooses another code than ``reference``."""
    vectors, codebook = vectors_and_codebook(device, dtype, channels)
    got, want = (each.nearest(vectors, codebook) for each in (module, reference))
    best, chosen = (
        (vectors.double() - codebook.double()[indices]).square().sum(-1) for indices in (want, got)
    )
    if not (got <= want).logical_or(chosen > best).all() or (chosen > best * (1 + 1e-6)).any():
        raise AssertionError("wrong codes")
