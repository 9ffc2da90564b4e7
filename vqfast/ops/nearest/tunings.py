"""Block sizes of the search kernels, by architecture and the widest vector that a line serves."""

from __future__ import annotations

from typing import NamedTuple


class Tuning(NamedTuple):
    """One configuration; ``splits`` is 1 (a plain fp16 product) or 3 (hi.hi + lo.hi + hi.lo)."""

    vectors: int
    codes: int
    channels: int  # no wider vectors stay on the chip while the codebook streams past
    warps: int
    stages: int
    splits: int = 1


ANY = 1 << 30

# Narrow vectors are bound by the epilogue: three products cost little there and certify nearly every vector.
# Up to 64 channels two blocks of four warps share a multiprocessor of sm_90: one multiplies while the other
# takes its minima. Wide vectors need large blocks: each block of vectors streams the codebook from L2
# (N, K, D = 131072, 8192, 256: 4.3 GB in all with 128 vectors).
# Each architecture changes some lines of the one before.
SEARCH: dict[str, dict[int, Tuning]] = {
    "sm_80": {
        16: Tuning(128, 64, 16, 4, 3, 3),
        64: Tuning(128, 64, 64, 8, 3),
        128: Tuning(128, 64, 128, 8, 3),
        256: Tuning(128, 64, 256, 16, 2),
        ANY: Tuning(128, 64, 64, 8, 3),
    }
}
SEARCH["sm_90"] = SEARCH["sm_80"] | {
    64: Tuning(128, 64, 64, 4, 3),
    128: Tuning(128, 128, 128, 8, 2),
    256: Tuning(128, 128, 256, 8, 2),
    ANY: Tuning(128, 128, 64, 8, 2),
}
SEARCH["sm_100"] = SEARCH["sm_90"] | {
    64: Tuning(128, 128, 64, 8, 3),
    256: Tuning(128, 64, 256, 8, 3),
    ANY: Tuning(128, 128, 32, 8, 3),
}
SEARCH["gfx942"] = {
    16: Tuning(128, 64, 16, 4, 2, 3),
    64: Tuning(128, 64, 64, 4, 2),
    128: Tuning(128, 64, 128, 4, 2),
    256: Tuning(64, 32, 256, 4, 2),
    ANY: Tuning(128, 64, 64, 4, 2),
}


def pick(table: dict[str, dict[int, Tuning]], arch: str, channels: int) -> Tuning:
    """The line for vectors of ``channels`` channels on ``arch``; of ``fallback`` if unlisted."""
    lines = table.get(arch) or table[fallback(arch)]
    return next(line for widest, line in lines.items() if channels <= widest)  # narrow ones come first


def fallback(arch: str) -> str:
    """The listed architecture whose tunings an unlisted one runs; consumer chips those of 64 KB."""
    number = int(arch.removeprefix("sm_")) if arch.startswith("sm_") else 0
    return {8: "gfx942", 9: "sm_90", 10: "sm_100"}.get(number // 10, "gfx942")
