"""How the GPU sampler is cut up, as data: bytes an element, architecture, widest batch that a line serves."""

from __future__ import annotations

from typing import NamedTuple

from vqfast.ops.nearest.tunings import ANY


class Launch(NamedTuple):
    """One launch: a group's images, the most blocks it may have, the tile of a product, the draws at a time."""

    images: int
    members: int
    rows: int  # 16 or more: on tensor cores (float32: as a blocked product); fewer: multiplied and summed
    columns: int
    depth: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    """Launches of what a row knows when it starts, and of its positions."""

    row: Launch
    position: Launch


# Few images: as many members as a step of 256 columns has tiles. Up to 1024 images the members hide the
# weights' way from L2; beyond it there are images enough for one block each, which needs no barrier.
_FEW = Tuning(Launch(1, 16, 16, 32, 64, 4, 3), Launch(1, 32, 1, 16, 128, 4, 1))
_HALF = {
    4: _FEW,
    64: Tuning(Launch(16, 16, 64, 64, 64, 4, 3), Launch(16, 16, 16, 32, 64, 4, 1)),
    256: Tuning(Launch(16, 8, 64, 64, 64, 4, 3), Launch(16, 8, 16, 64, 64, 4, 1)),
    2048: Tuning(Launch(64, 8, 128, 128, 64, 8, 3), Launch(64, 8, 64, 64, 64, 4, 1)),
    ANY: Tuning(Launch(64, 1, 128, 128, 64, 8, 3), Launch(64, 1, 64, 128, 64, 4, 4)),
}
_HALF_64_KB = _HALF | {
    2048: Tuning(Launch(32, 8, 64, 64, 64, 4, 2), Launch(32, 8, 32, 64, 64, 4, 1)),
    ANY: Tuning(Launch(32, 1, 64, 64, 64, 4, 2), Launch(32, 1, 32, 64, 64, 4, 2)),
}
_SINGLE = {
    4: Tuning(Launch(1, 16, 16, 32, 32, 4, 3), Launch(1, 32, 1, 16, 128, 4, 1)),
    64: Tuning(Launch(16, 16, 64, 32, 32, 4, 3), Launch(16, 16, 16, 32, 32, 4, 1)),
    256: Tuning(Launch(16, 8, 64, 64, 32, 4, 3), Launch(16, 8, 16, 64, 32, 4, 1)),
    2048: Tuning(Launch(64, 8, 64, 64, 32, 4, 3), Launch(64, 8, 64, 64, 16, 8, 1)),
    ANY: Tuning(Launch(64, 1, 64, 64, 32, 4, 3), Launch(64, 1, 64, 64, 32, 8, 2)),
}
# Float64 is there to be right: tensor cores don't do it everywhere.
_DOUBLE = {ANY: Tuning(Launch(4, 32, 8, 16, 16, 4, 1), Launch(4, 32, 4, 16, 16, 4, 1))}

SAMPLING: dict[int, dict[str, dict[int, Tuning]]] = {
    2: {"sm_80": _HALF, "sm_90": _HALF, "sm_100": _HALF, "gfx942": _HALF_64_KB},
    4: dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), _SINGLE),
    8: dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), _DOUBLE),
}
