"""Pictures of clips, and which part of one is kept in a completion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data.images.mask import SIDES
from vqfast.data.images.mask import kept_mask as kept_of_image
from vqfast.data.images.sheet import grid

FRAMES = 8  # of a clip in a picture, at most
GAP = 0.5  # grey between them


def some_frames(clips: Tensor, frames: int = FRAMES) -> Tensor:
    """Frames of each clip, evenly spread, side by side with a pixel between two of them.

    ``(N, C, T, H, W)`` becomes ``(N, C, H, frames * (W + 1) - 1)``.

    >>> some_frames(torch.zeros(2, 3, 16, 4, 6)).shape
    torch.Size([2, 3, 4, 55])
    """
    length = clips.shape[2]
    places = torch.linspace(0, length - 1, min(frames, length)).round().long()
    spaced = F.pad(clips[:, :, places], (0, 1), value=GAP)
    return spaced.permute(0, 1, 3, 2, 4).flatten(3)[..., :-1]


def show_items(items: Tensor, *, columns: int) -> bytes:
    """Frames of clips ``(N, C, T, H, W)``, a line for each clip, as a PNG.

    Args:
        columns: isn't used: a clip is a line.
    """
    return grid(some_frames(items), columns=1, scale=_scale(items))


def show_pairs(originals: Tensor, reconstructions: Tensor) -> bytes:
    """Frames of clips, each line above that of the reconstruction, as a PNG.

    Args:
        originals, reconstructions: floats ``(N, C, T, H, W)`` in [0, 1].
    """
    pairs = torch.stack([some_frames(originals), some_frames(reconstructions)], 1).flatten(0, 1)
    captions = ("original", "reconstruction") * len(originals)
    return grid(pairs, columns=1, captions=captions, scale=_scale(originals))


def show_completions(originals: Tensor, kept: Tensor, completions: Tensor) -> bytes:
    """For each clip a line of its frames, one of its kept part, and one of each completion, as a PNG.

    Args:
        originals: floats ``(N, C, T, H, W)`` in [0, 1].
        kept: bool ``(T', H', W')``, over the whole clip.
        completions: floats ``(draws, N, C, T'', H, W)``; ``T''`` may be more than T.
    """
    length = completions.shape[3]

    def lasting(clips: Tensor) -> Tensor:
        return F.pad(clips, (0, 0, 0, 0, 0, length - clips.shape[2]), value=0.5)

    seen = F.interpolate(kept[None, None].float(), originals.shape[2:], mode="nearest") > 0
    clips = torch.stack([lasting(originals), lasting(originals.where(seen, 0.5)), *completions], 1)
    captions = ["original", "kept", "completed", *[""] * (len(completions) - 1)] * len(originals)
    return grid(some_frames(clips.flatten(0, 1)), columns=1, captions=captions, scale=_scale(originals))


def kept_mask(keep: str, shape: tuple[int, ...]) -> Tensor:
    """Which codes of a clip are kept: bool ``(T, H, W)``.

    Args:
        keep: ``start`` or ``end``, a hyphen, and ``half`` or a share between 0 and 1, rounded to whole grids;
            or what keeps a part of each frame: see ``vqfast.data.images.mask.kept_mask``.
        shape: ``(T, H, W)``.

    Raises:
        ValueError: ``keep`` is something else, or keeps all codes or none.

    >>> kept_mask("start-half", (4, 2, 2)).flatten(1).all(1)
    tensor([ True,  True, False, False])
    """
    side, _, share = keep.partition("-")
    if side in SIDES:
        return kept_of_image(keep, shape[1:]).expand(shape)
    try:
        count = round((0.5 if share == "half" else float(share)) * shape[0])
    except (ValueError, OverflowError):
        count = 0
    if side not in ("start", "end") or not 0 < count < shape[0]:
        raise ValueError(f"keep is {keep!r}; want start-half, end-half or a share such as start-0.3")
    places = torch.arange(shape[0]) < count
    return (places.flip(0) if side == "end" else places).view(-1, 1, 1).expand(shape)


def _scale(clips: Tensor) -> int:
    """How many pixels wide a pixel becomes: small frames are enlarged to 64."""
    return max(1, round(64 / max(clips.shape[3:])))
