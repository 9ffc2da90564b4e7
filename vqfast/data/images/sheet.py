"""Sheets of images for people to look at: grids, reconstructions and maps of codes, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vqfast.checks import check_indices, check_integer
from vqfast.data.code_map import palette

MARGIN = 16  # around a sheet of tiles, in pixels
GAP = 4  # between tiles
TILE = 64  # smaller images are enlarged to at least this
GROUND = (34, 37, 43)  # colours in RGB
INK = (196, 200, 208)
NOT_FINITE = (255, 0, 255)


def grid(
    images: Tensor, *, columns: int, captions: Sequence[str] | None = None, scale: int | None = None
) -> bytes:
    """A sheet of images, line by line, as a PNG.

    Args:
        images: floats ``(N, C, H, W)`` in [0, 1], C 1 or 3. Values outside are clamped; pixels that aren't
            finite come out magenta.
        columns: images in a line.
        captions: one for each line, at its left.
        scale: how many pixels wide a pixel becomes; by default as many as make a tile 64 pixels or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of range.

    >>> import torch
    >>> grid(torch.zeros(6, 1, 8, 8), columns=3)[1:4]
    b'PNG'
    """
    tiles = _tiles("images", images)
    lines = _lines(tiles, columns)
    if captions is not None and len(captions) != len(lines):
        raise ValueError(f"captions has {len(captions)} entries; want {len(lines)}, one for each line")
    if scale is not None:
        check_integer("scale", scale)
    return _sheet(lines, _enlarged(tiles, scale), captions)


def to_uint8(images: Tensor) -> np.ndarray:
    """Floats ``(N, C, H, W)`` as uint8 of the same shape; values outside [0, 1] are clamped."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()


def show_pairs(originals: Tensor, reconstructions: Tensor, *, columns: int = 12) -> bytes:
    """Lines of originals, each above the line of their reconstructions, as a PNG.

    Args:
        originals: as ``images`` of ``grid``.
        reconstructions: of the same shape.

    Raises:
        TypeError, ValueError: see ``grid``.
    """
    above, below = _tiles("originals", originals), _tiles("reconstructions", reconstructions)
    if above.shape[:3] != below.shape[:3]:
        raise ValueError(
            f"reconstructions has shape {tuple(reconstructions.shape)}; "
            f"want the originals' {tuple(originals.shape)}"
        )
    return _sheet_of_pairs(above, below, columns, _enlarged(above), ("original", "reconstruction"))


def show_codes(indices: Tensor, num_embeddings: int, *, originals: Tensor | None, columns: int) -> bytes:
    """Grids of codes, a colour for each code, below their originals if given, as a PNG.

    A code has the same colour in all sheets of one ``num_embeddings``.

    Args:
        indices: integers ``(N, H, W)`` in ``0..num_embeddings - 1``.
        originals: floats ``(N, C, H', W')`` in [0, 1], or None.
        columns: grids in a line.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of range.
    """
    check_integer("num_embeddings", num_embeddings)
    check_indices("indices", indices, num_embeddings)
    if indices.ndim != 3 or not indices.numel():
        raise ValueError(f"indices has shape {tuple(indices.shape)}; want (N, H, W), none of them 0")
    maps = palette(num_embeddings)[indices.detach().cpu().numpy().astype(np.int64)]
    if originals is None:
        return _sheet(_lines(maps, columns), _enlarged(maps))
    tiles = _tiles("originals", originals)
    if len(tiles) != len(maps):
        raise ValueError(f"originals has {len(tiles)} images; want {len(maps)}, one for each grid of codes")
    return _sheet_of_pairs(tiles, maps, columns, _enlarged(tiles), ("original", "codes"))


def _tiles(argument: str, images: Tensor) -> np.ndarray:
    """Floats (N, C, H, W) -> uint8 (N, H, W, 3)."""
    if not isinstance(images, Tensor) or not images.dtype.is_floating_point:
        raise TypeError(f"{argument} is {_kind(images)}; want a tensor of floats")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"{argument} has shape {tuple(images.shape)}; want (N, C, H, W), C 1 or 3, none of them 0"
        )
    images = images.detach().float().cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    tiles = to_uint8(images.nan_to_num(0))
    tiles[~images.isfinite().all(-1).numpy()] = NOT_FINITE
    return tiles


def _lines(tiles: np.ndarray, columns: int) -> list[np.ndarray]:
    check_integer("columns", columns)
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]


def _enlarged(tiles: np.ndarray, scale: int | None = None) -> tuple[int, int]:
    """(width, height) of the tiles on the sheet."""
    height, width = tiles.shape[1:3]
    scale = scale or -(-TILE // max(height, width))
    return width * scale, height * scale


def _sheet_of_pairs(
    above: np.ndarray, below: np.ndarray, columns: int, tile: tuple[int, int], captions: tuple[str, str]
) -> bytes:
    pairs = zip(_lines(above, columns), _lines(below, columns), strict=True)
    lines = [line for pair in pairs for line in pair]
    return _sheet(lines, tile, captions * (len(lines) // 2), paired=True)


def _sheet(
    lines: list[np.ndarray],
    tile: tuple[int, int],
    captions: Sequence[str] | None = None,
    paired: bool = False,
) -> bytes:
    """Lines of tiles, each uint8 (n, h, w, 3); if ``paired``, each two lines stand close together."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = tile
    font = ImageFont.load_default(size=min(15, max(8, height)))
    gutter = math.ceil(max(font.getlength(caption) for caption in captions)) + 12 if captions else 0
    tops = [MARGIN]
    for number in range(1, len(lines)):
        tops.append(tops[-1] + height + (4 * GAP if paired and number % 2 == 0 else GAP))
    full_width = 2 * MARGIN + gutter + len(lines[0]) * (width + GAP) - GAP
    sheet = Image.new("RGB", (full_width, tops[-1] + height + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (tiles, top) in enumerate(zip(lines, tops, strict=True)):
        if captions:
            place = (MARGIN + gutter - 12, top + height / 2)
            draw.text(place, captions[number], fill=INK, font=font, anchor="rm")
        for column, pixels in enumerate(tiles):
            picture = Image.fromarray(pixels).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + gutter + column * (width + GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
