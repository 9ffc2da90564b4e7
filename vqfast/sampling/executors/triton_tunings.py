"""How the Triton executor divides its work, as data.

The table is ordered by bytes an element, architecture, and the largest batch that an entry serves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqfast.ops.nearest.tunings import ANY

MAX_AHEAD = 4


class Launch(NamedTuple):
    """One launch of the kernel.

    Attributes:
        images: samples of a group of blocks.
        members: maximum number of blocks in a group.
        rows, columns, depth: the tile of a matrix product. Tiles of 16 rows or more use ``tl.dot``, which
            runs on tensor cores in half precision.
        warps: of a block.
        stages: with 1 the kernel itself loads weights ahead, so that little is left to do after the group's
            blocks have waited for each other; with more the compiler overlaps loads and products.
    """

    images: int
    members: int
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def ahead(self) -> int:
        """Inputs whose places, and weights, are loaded before the group's blocks meet; none with stages.

        Two taps of 128 channels, if registers suffice.
        """
        fitting = 16 // self.rows if self.rows < 16 else 128 // self.rows
        return min(MAX_AHEAD, 256 // self.depth, fitting) if self.stages == 1 else 0

    def dot(self, dtype: torch.dtype) -> bool:
        """Whether products of values like ``dtype`` are matrix products to Triton."""
        return self.rows >= 16 and dtype != torch.float64


class Tuning(NamedTuple):
    """The launch for everything that is known when a row starts, and the launch for its positions."""

    row: Launch
    position: Launch


# Several members of a group divide the weights; with more than 2048 images, each block has 64 and waits for
# no other block. From 5 images on, the groups are so small and their tiles so narrow that at least 100 of 132
# multiprocessors have a tile of a step of 256 columns. Up to 64 images that is without tensor cores, which
# would need 16 rows: so few images are no work for them, and each group reads all weights.
_FEW = Launch(1, 32, 1, 16, 128, 4, 1)
_HALF = {
    4: Tuning(Launch(1, 16, 16, 32, 64, 4, 3), _FEW),
    8: Tuning(Launch(1, 32, 16, 16, 64, 4, 3), Launch(1, 32, 1, 8, 128, 4, 1)),
    16: Tuning(Launch(2, 32, 32, 16, 64, 4, 3), Launch(2, 32, 2, 8, 128, 4, 1)),
    32: Tuning(Launch(4, 32, 32, 32, 64, 4, 3), Launch(4, 32, 4, 8, 128, 4, 1)),
    64: Tuning(Launch(8, 32, 64, 32, 64, 4, 3), Launch(8, 32, 8, 8, 64, 4, 1)),
    128: Tuning(Launch(8, 16, 64, 64, 64, 4, 3), Launch(8, 16, 16, 16, 64, 4, 1)),
    256: Tuning(Launch(16, 16, 64, 64, 64, 4, 3), Launch(16, 16, 16, 16, 64, 4, 1)),
    512: Tuning(Launch(32, 16, 64, 64, 64, 4, 3), Launch(32, 16, 32, 16, 64, 4, 1)),
    2048: Tuning(Launch(64, 8, 128, 64, 64, 8, 3), Launch(64, 8, 64, 64, 64, 4, 1)),
    ANY: Tuning(Launch(64, 1, 128, 64, 64, 8, 3), Launch(64, 1, 64, 128, 64, 8, 3)),
}
_SINGLE = {
    4: Tuning(Launch(1, 16, 32, 32, 16, 4, 2), _FEW),
    8: Tuning(Launch(1, 32, 16, 16, 32, 4, 2), Launch(1, 32, 1, 8, 128, 4, 1)),
    16: Tuning(Launch(2, 32, 32, 16, 32, 4, 2), Launch(2, 32, 2, 8, 128, 4, 1)),
    32: Tuning(Launch(4, 32, 32, 32, 32, 4, 2), Launch(4, 32, 4, 8, 128, 8, 1)),
    64: Tuning(Launch(8, 32, 64, 32, 32, 4, 2), Launch(8, 32, 8, 8, 64, 4, 1)),
    128: Tuning(Launch(8, 16, 64, 32, 32, 4, 2), Launch(8, 16, 8, 16, 64, 4, 1)),
    256: Tuning(Launch(16, 16, 64, 32, 32, 4, 2), Launch(16, 16, 16, 16, 32, 4, 1)),
    512: Tuning(Launch(32, 16, 64, 32, 32, 4, 2), Launch(32, 16, 32, 16, 32, 4, 1)),
    2048: Tuning(Launch(64, 8, 64, 64, 32, 8, 2), Launch(64, 8, 64, 64, 16, 8, 1)),
    ANY: Tuning(Launch(64, 1, 64, 64, 32, 8, 2), Launch(64, 1, 64, 64, 16, 8, 2)),
}
# Blocks have 64 KB on AMD, and waiting for each other is untested there: each block has its own images.
_FEW_ALONE = Launch(1, 1, 1, 64, 64, 4, 1)
_HALF_ALONE = {
    4: Tuning(Launch(1, 1, 16, 64, 64, 4, 2), _FEW_ALONE),
    512: Tuning(Launch(4, 1, 64, 64, 64, 4, 2), Launch(4, 1, 16, 64, 64, 4, 2)),
    ANY: Tuning(Launch(32, 1, 64, 64, 64, 4, 2), Launch(32, 1, 32, 64, 64, 4, 2)),
}
_SINGLE_ALONE = {
    4: Tuning(Launch(1, 1, 16, 64, 32, 4, 2), _FEW_ALONE),
    512: Tuning(Launch(4, 1, 64, 64, 32, 8, 2), Launch(4, 1, 16, 64, 32, 4, 2)),
    ANY: Tuning(Launch(32, 1, 64, 64, 32, 8, 2), Launch(32, 1, 32, 64, 32, 8, 2)),
}
# Float64 is for correctness: not all tensor cores support it.
_DOUBLE = {ANY: Tuning(Launch(4, 1, 8, 16, 16, 4, 1), Launch(4, 1, 4, 16, 16, 4, 1))}

_NVIDIA = ("sm_80", "sm_90", "sm_100")
SAMPLING: dict[int, dict[str, dict[int, Tuning]]] = {
    2: {**dict.fromkeys(_NVIDIA, _HALF), "gfx942": _HALF_ALONE},
    4: {**dict.fromkeys(_NVIDIA, _SINGLE), "gfx942": _SINGLE_ALONE},
    8: dict.fromkeys((*_NVIDIA, "gfx942"), _DOUBLE),
}


def pick(tunings: dict[int, Tuning], images: int, rows: int = 1) -> Tuning:
    """The tuning for a batch of ``images``, of which ``rows`` rows are drawn side by side.

    A group then has as many positions as one of more images, whose tile it takes.
    """
    row, position = tunings[min(widest for widest in tunings if images <= widest)]
    positions = position.images * rows
    wider = [launch for _, launch in tunings.values() if launch.images >= positions]
    if position.rows < positions and wider:
        tile = min(wider, key=lambda launch: launch.images)
        position = tile._replace(images=position.images, members=position.members)
    return Tuning(row, position)
