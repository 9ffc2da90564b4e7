"""diffusers: the quantiser of VQModel. Checked with 0.42.1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vqfast.acceleration.replacement import Method, Replacement
from vqfast.acceleration.search import straight_through, too_small


def _forward(original: Method, self: Any, z: Tensor) -> Any:
    """``(B, D, H, W)`` -> the same, loss, (None, None, int64 ``(B * H * W,)`` or as remapped or reshaped)."""
    codebook = self.embedding.weight
    if too_small(z, codebook):
        return original(self, z)
    commitment_weight, codebook_weight = (1, self.beta) if self.legacy else (self.beta, 1)
    z_q, loss, indices = straight_through(z, codebook, commitment_weight, codebook_weight)
    if self.remap is not None:
        indices = self.remap_to_used(indices.view(len(z), -1)).view(-1, 1)
    if self.sane_index_shape:
        indices = indices.view(len(z), *z.shape[2:])
    return z_q, loss, (None, None, indices)


REPLACEMENTS = {
    "diffusers.models.autoencoders.vae.VectorQuantizer": Replacement(
        {"forward": _forward},
        lambda module: tuple(module.embedding.weight.shape),
        needs=("embedding", "beta", "legacy", "remap", "remap_to_used", "sane_index_shape"),
    )
}
