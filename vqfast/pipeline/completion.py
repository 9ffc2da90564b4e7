"""Completion: part of an image's codes is kept, the prior draws the rest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Images, load_images
from vqfast.models import VQVAE
from vqfast.pipeline import images as pictures
from vqfast.pipeline.codes import Codes
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.steps import Rows, Wanted, decoded, encoded, labels_of
from vqfast.priors.base import CausalPrior

SIDES = ("top", "bottom", "left", "right")
COLUMNS, ROWS = 12, 8  # images and completions of each in a picture


def kept_codes(keep: str, shape: tuple[int, int]) -> Tensor:
    """Which codes of a grid are kept: bool ``(H, W)``.

    Args:
        keep: ``top``, ``bottom``, ``left`` or ``right``, a hyphen, and ``half`` or a share between 0 and 1,
            rounded to whole rows or columns; or an image over the grid, bright where codes are kept.

    Raises:
        ValueError: it's none of these, or keeps all codes or none.
    """
    side, _, share = keep.partition("-")
    if side in SIDES:
        along = 0 if side in ("top", "bottom") else 1
        try:
            count = round((0.5 if share == "half" else float(share)) * shape[along])
        except (ValueError, OverflowError):
            raise ValueError(f"keep is {keep!r}; want {side}-half, or a share such as {side}-0.3") from None
        places = torch.arange(shape[along]) < count
        if side in ("bottom", "right"):
            places = places.flip(0)
        kept = (places if along else places.unsqueeze(1)).expand(shape)
    elif Path(keep).is_file():
        mask = load_images(keep, channels=1, skip_bad={}).batch([0])
        kept = F.interpolate(mask, shape, mode="area")[0, 0] > 0.5
    else:
        wanted = f"-half (or a share such as -0.3) of {', '.join(SIDES)}, or an image"
        raise ValueError(f"keep is {keep!r}; want {wanted}")
    if kept.all() or not kept.any():
        which = "all" if kept.any() else "none"
        raise ValueError(f"keep is {keep!r}, {which} of {shape[0]} x {shape[1]} codes; want some of them")
    return kept


def _labels(of_images: np.ndarray, draws: int) -> Rows:
    return lambda rows: torch.from_numpy(of_images[np.array(rows) // draws])


class Completion:
    """Samples of which sample ``i`` completes image ``i // draws``.

    The kept codes are those of the whole image: what is hidden may show in them as far as the encoder sees.

    Args:
        images: of a size that the VQ-VAE takes.
        keep: see ``kept_codes``.
        draws: completions of each image.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, vqvae: VQVAE, images: Images, keep: str, draws: int, ranks: Ranks) -> None:
        if not 1 <= draws < 2**31:
            raise ValueError(f"draws is {draws}; want 1 or more, below 2^31")
        self.vqvae, self.images, self.keep, self.draws, self.ranks = vqvae, images, keep, draws, ranks
        height, width = vqvae.code_shape(images.shape[1:])
        self.shape = height, width
        self.kept = kept_codes(keep, self.shape)

    def wanted(self, prior: CausalPrior, num: int | None, label: int | None) -> Wanted:
        """What is to be sampled: ``num`` of all completions. ``label``: of all, in place of the images' own.

        Raises:
            ValueError: there aren't as many, or the prior has no such class, or the labels are missing.
        """
        most = len(self.images) * self.draws
        if num is not None and num > most:
            raise ValueError(f"num is {num}; want {most} at most: {self.draws} of each image")
        labels = labels_of(prior, label)
        if labels is not None and label is None:
            if self.images.labels is None:
                raise ValueError("say --label: the prior has classes, the images have no labels")
            labels = _labels(self.images.labels, self.draws)
        note = {"images": self.images.fingerprint, "keep": self.keep, "draws": self.draws, "label": label}
        note["kept"] = hashlib.sha256(self.kept.numpy().tobytes()).hexdigest()[:16]  # an image may change
        return Wanted(num or most, self.shape, note, labels, self._known)

    def _known(self, rows: range) -> Tensor:
        image = torch.tensor(rows) // self.draws
        first, last = int(image[0]), int(image[-1])
        codes = encoded(self.vqvae, self.images, self.ranks).read(range(first, last + 1))[0]
        return codes.where(self.kept, -1)[image - first]

    def sheet(self, samples: Codes) -> bytes:
        """A picture, a column an image: the original, what is kept of it, and completions, as a PNG."""
        columns = min(COLUMNS, -(-samples.num // self.draws))
        draws = min(ROWS, self.draws, samples.num - (columns - 1) * self.draws)
        originals = self.images.batch(range(columns))
        seen = F.interpolate(self.kept[None, None].float(), originals.shape[2:], mode="nearest") > 0
        drawn = [
            torch.cat(list(decoded(self.vqvae, samples, range(first, first + draws), self.ranks)))
            for first in range(0, columns * self.draws, self.draws)
        ]
        rows = [originals, originals.where(seen, 0.5), *torch.stack(drawn, dim=1)]
        return pictures.grid(torch.cat(rows), columns, ["original", "kept", "completed", *[""] * (draws - 1)])
