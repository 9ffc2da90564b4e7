"""A set of equally sized images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data.items import Files, Items

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns RGB into grey


class Pixels(Files, Protocol):
    """Where images come from: files in a folder, or an array.

    Attributes:
        shape: ``(C, H, W)`` of an image.
        depth: bits of a channel where they are integers of more than 8 bits, else None.
    """

    shape: tuple[int, int, int]
    depth: int | None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The images of these numbers: ``(n, C, H, W)``, uint8 or float32 in [0, 1]."""
        ...


class Images(Items):
    """A set of equally sized images, read when they are needed; ``load_images`` makes one.

    Attributes:
        shape: ``(C, H, W)`` of an image, or of its crop.
        labels: int64 ``(N,)``, or None.
        num_classes: the largest label of the loaded set plus 1, which the parts of a split keep; or None.

    >>> from vqfast.data import load_images
    >>> images = load_images("digits", size=8)
    >>> len(images), images.shape, images.num_classes
    (1797, (1, 8, 8), 10)
    >>> images.batch([3, 1, 4]).shape, images.labels[[3, 1, 4]]
    (torch.Size([3, 1, 8, 8]), array([3, 1, 4]))
    """

    item = "image"

    def __init__(
        self,
        pixels: Pixels,
        name: str,
        labels: np.ndarray | None,
        channels: int | None,
        crop: int | None,
        flip: bool,
    ) -> None:
        super().__init__(pixels, name, labels)
        check_integer("crop", crop, 1, min(pixels.shape[1:]), optional=True)
        sizes = pixels.shape[1:] if crop is None else (crop, crop)
        self.shape = (channels or pixels.shape[0], *sizes)
        self._pixels, self._flip = pixels, flip

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images of these numbers, as float32 ``(len(numbers), C, H, W)`` in [0, 1].

        Args:
            numbers: integers in 0..N-1, in any order, repeated or not.

        Raises:
            TypeError: ``numbers`` is no list of integers.
            ValueError: a number or a pixel is out of range.
            Unreadable: files can't be read; it names all of those among ``numbers``.
        """
        images = self._read(self._own(numbers))
        top, left = (beyond // 2 for beyond in self._beyond())
        return images[:, :, top : top + self.shape[1], left : left + self.shape[2]].contiguous()

    def varied(self, numbers: Sequence[int] | np.ndarray | Tensor, chances: Tensor) -> Tensor:
        """As ``batch``, with random crops where the set was loaded with ``crop``, and mirrored with ``flip``.

        Args:
            chances: float64 ``(n, 3)`` in [0, 1): for the top, the left side, and the mirror.
        """
        if not len(numbers) or (not self._flip and self._beyond() == (0, 0)):
            return self.batch(numbers)
        places = (chances[:, :2] * (torch.tensor(self._beyond()) + 1)).long().tolist()
        height, width = self.shape[1:]
        images = [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(self._read(self._own(numbers)), places, strict=True)
        ]
        mirrored = (chances[:, 2] < 0.5).tolist() if self._flip else [False] * len(images)
        return torch.stack([x.flip(2) if flip else x for x, flip in zip(images, mirrored, strict=True)])

    def _beyond(self) -> tuple[int, int]:
        """By how much the whole images are higher and wider than the items."""
        _, height, width = self._pixels.shape
        return height - self.shape[1], width - self.shape[2]

    def _read(self, own: np.ndarray) -> Tensor:
        """Whole images."""
        if not own.size:
            return torch.empty(0, self.shape[0], *self._pixels.shape[1:])
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels.read(own)))
        images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if images.shape[1] == 3 and self.shape[0] == 1:
            luma = (images * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
            return luma.clamp_(0, 1)  # white may round to just over 1
        return images.expand(-1, self.shape[0], -1, -1)

    def _layout(self) -> str:
        return super()._layout() + (f" of {self._pixels.shape}" if any(self._beyond()) else "")

    @property
    def depth(self) -> int | None:
        """Bits of a channel where they are integers of more than 8 bits, else None."""
        return self._pixels.depth

    def summary(self) -> str:
        """Colours, size and depth, in words."""
        channels, height, width = self.shape
        depth = f", {self.depth} bits" if self.depth else ""
        crops = f", crops of {self._pixels.shape[2]}x{self._pixels.shape[1]}" if any(self._beyond()) else ""
        return f"{'grey' if channels == 1 else 'RGB'} {width}x{height}{crops}{depth}"
