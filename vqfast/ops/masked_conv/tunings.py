"""Block sizes of the convolution kernels, as data: by architecture and arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from vqfast.ops.nearest.tunings import fallback


class Tuning(NamedTuple):
    """A block of ``rows x columns`` sums, each of ``depth`` products at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Arithmetic: fp16 and bf16 are "half"; float32 is "tf32" or "ieee", as PyTorch's convolution is set.
HALF, TF32, IEEE, DOUBLE = "half", "tf32", "ieee", "double"

# Rows are positions, columns output channels, depth input channels. With 128 x 128 each multiprocessor of an
# H100 has one block at 16 images of 32 x 32 and 128 channels; without tensor cores registers are short.
# Each architecture changes some lines of the one before.
CONVOLVE: dict[str, dict[str, Tuning]] = {
    "sm_80": {
        HALF: Tuning(128, 128, 32, 8, 4),
        TF32: Tuning(128, 128, 32, 8, 3),
        IEEE: Tuning(64, 128, 16, 4, 3),
        DOUBLE: Tuning(32, 32, 16, 4, 2),
    }
}
CONVOLVE["sm_90"] = CONVOLVE["sm_80"] | {HALF: Tuning(128, 128, 64, 8, 3)}
CONVOLVE["sm_100"] = CONVOLVE["sm_90"] | {TF32: Tuning(128, 128, 16, 8, 4)}
CONVOLVE["gfx942"] = CONVOLVE["sm_100"] | {
    HALF: Tuning(128, 128, 32, 8, 2),
    TF32: Tuning(128, 64, 32, 8, 2),  # for the NVIDIA chips that have no line of their own
    IEEE: Tuning(64, 128, 16, 4, 2),
}
# Rows are input channels, columns output channels, depth positions.
WEIGHT: dict[str, dict[str, Tuning]] = {
    arch: lines | {IEEE: lines[IEEE]._replace(rows=128, warps=8)} for arch, lines in CONVOLVE.items()
}
WEIGHT["sm_100"][HALF] = Tuning(128, 128, 32, 8, 4)


def pick(table: dict[str, dict[str, Tuning]], arch: str, arithmetic: str) -> Tuning:
    """The line for ``arithmetic`` on ``arch``; the nearest older architecture's if unlisted."""
    return (table.get(arch) or table[fallback(arch)])[arithmetic]
