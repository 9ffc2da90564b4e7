"""Block sizes of the search kernels, as data: architecture, widest row that a line serves, its blocks."""

from __future__ import annotations

from typing import NamedTuple


class Tuning(NamedTuple):
    """One configuration; ``splits`` is 1 (a plain fp16 product) or 3 (hi.hi + lo.hi + hi.lo)."""

    rows: int
    codes: int
    channels: int  # rows no wider than this stay on the chip while the codes stream past
    warps: int
    stages: int
    splits: int = 1


ANY = 1 << 30

# Narrow rows are bound by the epilogue: three products cost little there and certify nearly every row.
# Up to 64 channels two blocks of four warps share a multiprocessor of sm_90: one multiplies while the other
# takes its minima. Wide rows need large blocks: each block of rows streams the codebook from L2
# (N, K, D = 131072, 8192, 256: 4.3 GB in all with 128 rows).
# An architecture's lines are those of the one before, but for:
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
# Only the rows that the search can't certify come here: few, so that small blocks spread them over the chip.
RECHECK: dict[str, dict[int, Tuning]] = {
    arch: {16: Tuning(32, 64, 16, 4, 2, 3), ANY: Tuning(32, 64, 64, 4, 2, 3)} for arch in SEARCH
}


def pick(table: dict[str, dict[int, Tuning]], arch: str, channels: int) -> Tuning:
    """The line for rows of ``channels`` channels on ``arch``; the nearest older architecture if unlisted."""
    lines = table.get(arch) or table[fallback(arch)]
    return next(lines[widest] for widest in sorted(lines) if channels <= widest)


def fallback(arch: str) -> str:
    """The listed architecture whose tunings an unlisted one runs: consumer chips take those of 64 KB."""
    number = int(arch.removeprefix("sm_")) if arch.startswith("sm_") else 0
    return {8: "gfx942", 9: "sm_90", 10: "sm_100"}.get(number // 10, "gfx942")
