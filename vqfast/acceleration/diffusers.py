"""diffusers: the quantiser of VQModel. Checked with 0.42.1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vqfast.acceleration.search import little, straight_through
from vqfast.acceleration.swap import Fast, Swap


def _forward(original: Fast, self: Any, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
    """``(B, D, H, W)`` -> the same, loss, (None, None, int64 ``(B * H * W,)`` or as remapped or reshaped)."""
    codes = self.embedding.weight
    if little(z, codes):
        return original(self, z)
    commitment, codebook = (1, self.beta) if self.legacy else (self.beta, 1)
    z_q, loss, indices = straight_through(z, codes, commitment, codebook)
    if self.remap is not None:
        indices = self.remap_to_used(indices.view(len(z), -1)).view(-1, 1)
    if self.sane_index_shape:
        indices = indices.view(len(z), *z.shape[2:])
    return z_q, loss, (None, None, indices)


SWAPS = {
    "diffusers.models.autoencoders.vae.VectorQuantizer": Swap(
        {"forward": _forward},
        lambda module: tuple(module.embedding.weight.shape),
        needs=("embedding", "beta", "legacy", "remap", "remap_to_used", "sane_index_shape"),
    )
}
