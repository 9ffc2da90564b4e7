"""One image file, read by Pillow: upright, and with all the bits that it has."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # Pillow is optional
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "QOI")
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi"),
}
GREY = ("1", "L", "LA", "La")
OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class Probe(NamedTuple):
    """What an image file holds.

    Args:
        grey: whether it has no colour.
        wide: whether a channel has more than 8 bits.
        size: (width, height), upright.
        highest: its largest value if it is wide and was asked for, else 0.
    """

    grey: bool
    wide: bool
    size: tuple[int, int]
    highest: int


def probe(file: Path, whole: bool, highest: bool) -> Probe:
    """Looks at a file's header; ``whole``: at all of it; ``highest``: at the values of wide ones.

    Raises: nearly anything, if the file can't be read.
    """
    with opened(file) as picture:
        rawmode = _rawmode(picture)
        if picture.mode == "F":
            raise ValueError("it has 32-bit floats; want integers")
        wide = _is_wide(picture.mode, rawmode)
        grey = picture.mode in GREY or picture.mode.startswith("I") or rawmode.startswith("LA;16")
        width, height = picture.size
        if _sideways(picture):
            width, height = height, width
        if whole and not wide:
            picture.load()
    peak = int(values(file, "L").max()) if wide and (whole or highest) else 0
    return Probe(grey, wide, (width, height), peak)


def values(file: Path, mode: str, size: int | None = None) -> np.ndarray:
    """The values of a file: ``(H, W)`` or ``(H, W, C)``.

    They are uint8 in ``mode``, ``L`` or ``RGB``, and a square of ``size``; or wider integers, then of as many
    channels as the file has without alpha, and of its size. An animation is its first frame. Alpha is
    dropped, EXIF's rotation done.

    Raises: nearly anything, if the file can't be read.
    """
    with opened(file) as picture:
        rawmode = _rawmode(picture)
        if not _is_wide(picture.mode, rawmode):
            picture.info.pop("transparency", None)
            upright = _upright(picture)
            upright = upright if upright.mode == mode else upright.convert(mode)
            return np.asarray(upright if size is None else square(upright, size))
        if picture.mode.startswith("I"):
            found = np.asarray(_upright(picture))
            if found.min() < 0:
                raise ValueError(f"it has the value {found.min()}; want 0 or more")
            return found
    # Pillow keeps 8 bits of such files: the high byte, or by the rawmode of the other byte order the low one.
    if rawmode.startswith("LA"):  # for which it has no other order; as RGBA all four bytes come
        return np.ascontiguousarray(_unpacked(file, "RGBA")[..., :2]).view(">u2")[..., 0]
    high = _unpacked(file, rawmode)[..., :3]
    both = np.empty((*high.shape, 2), np.uint8)
    both[..., 0] = high
    del high  # a large picture's takes much room
    both[..., 1] = _unpacked(file, rawmode[:-1] + OTHER_BYTE[rawmode[-1]])[..., :3]
    return both.view(">u2")[..., 0]


def square(picture: Image, size: int) -> Image:
    """The shorter side resized to ``size``, the central square cut out."""
    from PIL import Image, ImageOps

    if picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


@contextmanager
def opened(file: Path) -> Iterator[ImageFile]:
    """A file of one of ``FORMATS``, told by its content.

    Raises: nearly anything; among it, for more pixels than Pillow's ``Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody needs
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as picture:
            yield picture


def _unpacked(file: Path, rawmode: str) -> np.ndarray:
    with opened(file) as picture:
        picture.tile = [
            tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *(tile.args or ())[1:]))
            for tile in picture.tile
        ]
        return np.asarray(_upright(picture))


def _rawmode(picture: ImageFile) -> str:
    """How Pillow calls the layout of a file's values, such as ``RGB;16B``."""
    args = picture.tile[0][3] if getattr(picture, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _is_wide(mode: str, rawmode: str) -> bool:
    return mode.startswith("I") or (mode in ("RGB", "RGBA") and rawmode[-4:-1] == ";16")


def _sideways(picture: Image) -> bool:
    """Whether width and height are yet to be swapped. Pillow has done it for TIFF."""
    if picture.format == "TIFF" or (picture.format == "PNG" and not any("exif" in k for k in picture.info)):
        return False  # Pillow would read a whole PNG in search of it
    from PIL.ExifTags import Base

    return picture.getexif().get(Base.Orientation) in (5, 6, 7, 8)


def _upright(picture: Image) -> Image:
    from PIL import ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    return picture
