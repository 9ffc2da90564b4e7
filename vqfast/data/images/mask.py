"""Which part of an image is kept in a completion."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data.images.load import load_images
from vqfast.data.images.sheet import grid

SIDES = ("top", "bottom", "left", "right")


def kept_mask(keep: str, shape: tuple[int, ...]) -> Tensor:
    """Which codes of a grid are kept: bool ``(H, W)``.

    Args:
        keep: ``top``, ``bottom``, ``left`` or ``right``, a hyphen, and ``half`` or a share between 0 and 1,
            rounded to whole lines of codes; or the path of an image over the grid, bright where codes are
            kept.
        shape: ``(H, W)``.

    Raises:
        ValueError: ``keep`` is none of these, or keeps all codes or none.

    >>> kept_mask("top-half", (2, 3))
    tensor([[ True,  True,  True],
            [False, False, False]])
    """
    side, _, share = keep.partition("-")
    if side in SIDES:
        axis = 0 if side in ("top", "bottom") else 1
        try:
            count = round((0.5 if share == "half" else float(share)) * shape[axis])
        except (ValueError, OverflowError):
            raise ValueError(f"keep is {keep!r}; want {side}-half, or a share such as {side}-0.3") from None
        places = torch.arange(shape[axis]) < count
        if side in ("bottom", "right"):
            places = places.flip(0)
        kept = (places if axis else places.unsqueeze(1)).expand(shape)
    elif Path(keep).is_file():
        # an empty skip_bad: an error then doesn't propose --skip-bad
        mask = load_images(keep, channels=1, skip_bad={}).batch([0])
        kept = F.interpolate(mask, shape, mode="area")[0, 0] > 0.5
    else:
        sides = ", ".join(SIDES)
        raise ValueError(f"keep is {keep!r}; want -half (or a share such as -0.3) of {sides}, or an image")
    if kept.all() or not kept.any():
        amount = "all" if kept.any() else "none"
        raise ValueError(f"keep is {keep!r}, {amount} of {shape[0]} x {shape[1]} codes; want some of them")
    return kept


def show_completions(originals: Tensor, kept: Tensor, completions: Tensor) -> bytes:
    """A column for each image: the original, the kept part of it, its completions; as a PNG.

    Args:
        originals: floats ``(N, C, H, W)`` in [0, 1].
        kept: bool, a grid over the image.
        completions: floats ``(draws, N, C, H, W)`` in [0, 1].
    """
    seen = F.interpolate(kept[None, None].float(), originals.shape[2:], mode="nearest") > 0
    lines = torch.cat([originals, originals.where(seen, 0.5), completions.flatten(0, 1)])
    captions = ["original", "kept", "completed", *[""] * (len(completions) - 1)]
    return grid(lines, columns=len(originals), captions=captions)
