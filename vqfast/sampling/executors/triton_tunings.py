"""How the GPU sampler is cut up, as data: bytes an element, architecture, widest batch that a line serves."""

from __future__ import annotations

from typing import NamedTuple

from vqfast.ops.nearest.tunings import ANY


class Launch(NamedTuple):
    """A group's images, the most blocks it may have, the tile of a product, and how it is compiled.

    Tiles of 16 rows or more multiply on tensor cores (float32: as a blocked product). One stage: the kernel
    loads ahead itself, to have little to do after a meeting; more: the compiler overlaps loads and products.
    """

    images: int
    members: int
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    """The launches of what a row knows when it starts, and of its positions."""

    row: Launch
    position: Launch


# Few images: as many members as a step of 256 columns has tiles. Up to 2048 images members still pay, since
# they share out the weights; beyond it there is a block for every 64 images, and nobody waits.
_FEW = Launch(1, 32, 1, 16, 128, 4, 1)
_HALF = {
    4: Tuning(Launch(1, 16, 16, 32, 64, 4, 3), _FEW),
    256: Tuning(Launch(16, 16, 64, 64, 64, 4, 3), Launch(16, 16, 16, 32, 64, 4, 1)),
    2048: Tuning(Launch(64, 8, 128, 64, 64, 8, 3), Launch(64, 8, 64, 64, 64, 4, 1)),
    ANY: Tuning(Launch(64, 1, 128, 64, 64, 8, 3), Launch(64, 1, 64, 128, 64, 8, 3)),
}
_SINGLE = {
    4: Tuning(Launch(1, 16, 32, 32, 16, 4, 2), _FEW),
    256: Tuning(Launch(16, 16, 64, 32, 32, 4, 2), Launch(16, 16, 16, 32, 32, 4, 1)),
    2048: Tuning(Launch(64, 8, 64, 64, 32, 8, 2), Launch(64, 8, 64, 64, 16, 8, 1)),
    ANY: Tuning(Launch(64, 1, 64, 64, 32, 8, 2), Launch(64, 1, 64, 64, 16, 8, 2)),
}
# Where blocks have 64 KB, or their meetings are untried (AMD): each owns its images.
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
# Float64 is there to be right: tensor cores don't do it everywhere.
_DOUBLE = {ANY: Tuning(Launch(4, 1, 8, 16, 16, 4, 1), Launch(4, 1, 4, 16, 16, 4, 1))}

_NVIDIA = ("sm_80", "sm_90", "sm_100")
SAMPLING: dict[int, dict[str, dict[int, Tuning]]] = {
    2: {**dict.fromkeys(_NVIDIA, _HALF), "gfx942": _HALF_ALONE},
    4: {**dict.fromkeys(_NVIDIA, _SINGLE), "gfx942": _SINGLE_ALONE},
    8: dict.fromkeys((*_NVIDIA, "gfx942"), _DOUBLE),
}
