"""One image file, read by Pillow: upright, and with all the bits of its channels."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

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


class PictureFacts(NamedTuple):
    """Facts about an image file.

    Args:
        grey: whether it has no colour.
        wide: whether a channel has more than 8 bits.
        size: (width, height), upright.
        highest: its largest value, if the file is wide and the value was asked for; else 0.
    """

    grey: bool
    wide: bool
    size: tuple[int, int]
    highest: int


def picture_facts(file: Path | BinaryIO, *, whole: bool, highest: bool) -> PictureFacts:
    """Facts about a file, from its header.

    Args:
        whole: reads all of the file, so that damage shows.
        highest: reads the values of a wide file.

    Raises:
        Exception: nearly any, if the file can't be read.
    """
    with open_picture(file) as picture:
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
    peak = int(read_values(file, "L").max()) if wide and (whole or highest) else 0
    return PictureFacts(grey, wide, (width, height), peak)


def read_values(file: Path | BinaryIO, mode: str, size: int | None = None) -> np.ndarray:
    """The values of a file: ``(H, W)`` or ``(H, W, C)``.

    Alpha is dropped, EXIF's rotation is applied, an animation gives its first frame.

    Args:
        mode: ``L`` or ``RGB``: what a file of 8 bits a channel becomes, as uint8. A wider file gives wider
            integers in the channels that it has.
        size: pixels along a side of the square that a file of 8 bits a channel becomes. A wider file keeps
            its size.

    Raises:
        Exception: nearly any, if the file can't be read.
    """
    with open_picture(file) as picture:
        rawmode = _rawmode(picture)
        if not _is_wide(picture.mode, rawmode):
            picture.info.pop("transparency", None)
            upright = _upright(picture)
            upright = upright if upright.mode == mode else upright.convert(mode)
            return np.asarray(upright if size is None else square(upright, size))
        if picture.mode.startswith("I"):
            integers = np.asarray(_upright(picture))
            if integers.min() < 0:
                raise ValueError(f"it has the value {integers.min()}; want 0 or more")
            return integers
    # Pillow keeps 8 bits of such files: the high byte; and the low byte when told the other byte order.
    if rawmode.startswith("LA"):  # has no name for the other order; read as RGBA, all four bytes come
        return np.ascontiguousarray(_unpacked(file, "RGBA")[..., :2]).view(">u2")[..., 0]
    high = _unpacked(file, rawmode)[..., :3]
    both = np.empty((*high.shape, 2), np.uint8)
    both[..., 0] = high
    del high  # it may be large
    both[..., 1] = _unpacked(file, rawmode[:-1] + OTHER_BYTE[rawmode[-1]])[..., :3]
    return both.view(">u2")[..., 0]


def square(picture: Image, size: int) -> Image:
    """Resizes the shorter side to ``size`` and cuts out the central square."""
    from PIL import Image, ImageOps

    if picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


@contextmanager
def open_picture(file: Path | BinaryIO) -> Iterator[ImageFile]:
    """Opens a file that by its content has one of ``FORMATS``.

    Raises:
        Exception: nearly any, if the file can't be read or has more pixels than Pillow's
            ``Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that nobody needs
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as picture:
            yield picture


def _unpacked(file: Path | BinaryIO, rawmode: str) -> np.ndarray:
    with open_picture(file) as picture:
        picture.tile = [
            tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *(tile.args or ())[1:]))
            for tile in picture.tile
        ]
        return np.asarray(_upright(picture))


def _rawmode(picture: ImageFile) -> str:
    """Pillow's name of the layout of a file's values, such as ``RGB;16B``."""
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
