"""Pictures of recordings: spectrograms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data.images.sheet import grid

WINDOW = 512
WIDTH = 256  # pixels of a picture, at most
RANGE = 8.0  # nats of power from black to white


def spectrograms(waves: Tensor) -> Tensor:
    """Log-power spectrograms as pictures, low frequencies below, each with its loudest place white.

    Args:
        waves: floats ``(N, 1, T)``.

    Returns:
        ``(N, 1, WINDOW / 2, W)`` in [0, 1], W at most ``WIDTH``.

    >>> tone = (torch.arange(8000) * 0.5).sin().view(1, 1, -1)
    >>> picture = spectrograms(tone)
    >>> picture.shape, picture[0, 0].mean(1).argmax()  # 0.5 radians a sample: place 40 of 256 from below
    (torch.Size([1, 1, 256, 251]), tensor(215))
    """
    waves = waves.detach().float().cpu().squeeze(1)
    hop = max(32, -(-waves.shape[1] // WIDTH))
    waves = F.pad(waves, (0, max(0, hop - waves.shape[1])))
    window = torch.hann_window(WINDOW)
    padded = F.pad(waves, (WINDOW // 2, WINDOW // 2))
    spectrum = torch.stft(padded, WINDOW, hop, window=window, center=False, return_complex=True)[:, 1:]
    power = spectrum.abs().square().add(1e-6).log().flip(1).unsqueeze(1)[..., :WIDTH]
    return (1 + (power - power.amax((1, 2, 3), keepdim=True)) / RANGE).clamp(0, 1)


def show_items(items: Tensor, *, columns: int) -> bytes:
    """Spectrograms of recordings ``(N, 1, T)``, so many in a line, as a PNG."""
    return grid(spectrograms(items), columns=columns, scale=1)


def show_pairs(originals: Tensor, reconstructions: Tensor) -> bytes:
    """Spectrograms of recordings, each above that of its reconstruction, as a PNG.

    Args:
        originals: floats ``(N, 1, T)``.
        reconstructions: floats ``(N, 1, T)``, or longer at the end.
    """
    reconstructions = reconstructions[..., : originals.shape[2]]
    pairs = torch.stack([spectrograms(originals), spectrograms(reconstructions)], 1).flatten(0, 1)
    captions = ("original", "reconstruction") * len(originals)
    return grid(pairs, columns=1, captions=captions, scale=1)


def show_completions(originals: Tensor, kept: Tensor, completions: Tensor) -> bytes:
    """For each recording a line of spectrograms: itself, its kept part, its completions; as a PNG.

    Args:
        originals: floats ``(N, 1, T)``.
        kept: bool ``(T',)`` or ``(N, T')``, over as many samples as ``completions`` have.
        completions: floats ``(draws, N, 1, T)``, or longer at the end.
    """
    length = originals.shape[2]
    seen = F.interpolate(kept.view(-1, 1, kept.shape[-1]).float(), completions.shape[3:]) > 0
    shown = originals.where(seen[:, :, :length], 0)
    waves = torch.stack([originals, shown, *completions[..., :length]], 1)
    return grid(spectrograms(waves.flatten(0, 1)), columns=waves.shape[1], scale=1)


def kept_mask(keep: str, shape: tuple[int, ...]) -> Tensor:
    """Which codes of a sequence are kept: bool ``(T,)``.

    Args:
        keep: ``start`` or ``end``, a hyphen, and ``half`` or a share between 0 and 1.
        shape: ``(T,)``.

    Raises:
        ValueError: ``keep`` is something else.

    >>> kept_mask("start-half", (4,))
    tensor([ True,  True, False, False])
    """
    side, _, share = keep.partition("-")
    try:
        kept = 0.5 if share == "half" else float(share)
    except ValueError:
        kept = 0
    if side not in ("start", "end") or not 0 < kept < 1:
        raise ValueError(f"keep is {keep!r}; want start-half, end-half or a share such as start-0.3")
    count = min(max(1, round(kept * shape[-1])), shape[-1] - 1)  # at least one code is kept, and one drawn
    places = torch.arange(shape[-1]) < count
    return places.flip(0) if side == "end" else places
