"""Pictures for people: image grids, reconstructions, code maps and training curves, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MARGIN = 16  # around a sheet of tiles, in pixels
GAP = 4  # between tiles
TILE = 64  # smaller images are enlarged to at least this
GROUND = (34, 37, 43)
INK = (196, 200, 208)
NOT_FINITE = (255, 0, 255)
LINE = "#2f6db3"


def grid(images: Tensor, columns: int, labels: list[str] | None = None, scale: int | None = None) -> bytes:
    """A sheet of images, row by row, as a PNG.

    ``images``: floats (N, C, H, W) in [0, 1], C 1 or 3; values outside are clamped, non-finite pixels come
    out magenta. ``labels``: one a row, at the left. ``scale``: enlargement of every pixel; None makes a tile
    64 pixels or more. Raises TypeError or ValueError naming what is wrong.
    """
    tiles = _tiles("images", images)
    rows = _rows(tiles, columns)
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels has {len(labels)} entries; want {len(rows)}, one a row")
    if scale is not None:
        _check_count("scale", scale)
    return _sheet(rows, _enlarged(tiles, scale), labels)


def pixels(images: Tensor) -> np.ndarray:
    """Floats (N, C, H, W) as uint8 of the same shape; values outside [0, 1] are clamped."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()


def single(image: np.ndarray) -> bytes:
    """uint8 (C, H, W), C 1 or 3, as a PNG of H x W pixels, grey or RGB."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(originals: Tensor, reconstructions: Tensor, columns: int) -> bytes:
    """Rows of originals, each above the row of their reconstructions, as a PNG.

    Both are floats (N, C, H, W) of one shape, shown as by ``grid``. Raises TypeError or ValueError.
    """
    above, below = _tiles("originals", originals), _tiles("reconstructions", reconstructions)
    if above.shape[:3] != below.shape[:3]:
        raise ValueError(
            f"reconstructions has shape {tuple(reconstructions.shape)}; "
            f"want the originals' {tuple(originals.shape)}"
        )
    return _sheet_of_pairs(above, below, columns, _enlarged(above), ("original", "reconstruction"))


def code_maps(codes: Tensor, num_embeddings: int, originals: Tensor | None, columns: int) -> bytes:
    """Maps of code indices, a colour a code, below their originals if given, as a PNG.

    ``codes``: integers (N, H, W) in 0..num_embeddings-1; ``originals``: floats (N, C, H', W') in [0, 1] or
    None. A code has one colour in all pictures of one ``num_embeddings``. Raises TypeError or ValueError.
    """
    _check_count("num_embeddings", num_embeddings)
    if not isinstance(codes, Tensor) or codes.dtype.is_floating_point or codes.dtype == torch.bool:
        raise TypeError(f"codes is {_kind(codes)}; want a tensor of integers")
    if codes.ndim != 3 or not codes.numel():
        raise ValueError(f"codes has shape {tuple(codes.shape)}; want (N, H, W), none of them 0")
    indices = codes.detach().cpu().numpy().astype(np.int64)
    if indices.min() < 0 or indices.max() >= num_embeddings:
        raise ValueError(f"codes has values {indices.min()}..{indices.max()}; want 0..{num_embeddings - 1}")
    maps = _palette(num_embeddings)[indices]
    if originals is None:
        return _sheet(_rows(maps, columns), _enlarged(maps))
    tiles = _tiles("originals", originals)
    if len(tiles) != len(maps):
        raise ValueError(f"originals has {len(tiles)} images; want {len(maps)}, one a code map")
    return _sheet_of_pairs(tiles, maps, columns, _enlarged(tiles), ("original", "codes"))


def curves(history: dict[str, list[float]], steps: list[int], title: str) -> bytes:
    """A panel for every metric over the steps, as a PNG; the same input gives the same bytes.

    ``history``: name -> as many values as there are ``steps``; those not finite are left out. Series over 60
    points are drawn faint under a smoothed line; losses that fall tenfold get a log scale. Raises ValueError
    on an empty history and on unequal lengths.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if not history or not len(steps):
        raise ValueError(f"history has {len(history)} metrics at {len(steps)} steps; want something to draw")
    for name, values in history.items():
        if len(values) != len(steps):
            raise ValueError(f"history[{name!r}] has {len(values)} values; want {len(steps)}, one a step")
    columns = {1: 1, 2: 2, 4: 2}.get(len(history), 3)
    rows = -(-len(history) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    figure.suptitle(title, fontsize=13, fontweight="bold", color="#222222", parse_math=False)
    for place, (name, values) in enumerate(history.items(), start=1):
        panel = figure.add_subplot(rows, columns, place)
        finite = np.isfinite(np.asarray(values, dtype=np.float64))
        x, y = np.asarray(steps)[finite], np.asarray(values, dtype=np.float64)[finite]
        log = _is_loss(name) and len(y) > 0 and y.min() > 0 and y.max() > 10 * y.min()
        if len(y) > 60:
            panel.plot(x, y, color=LINE, alpha=0.25, linewidth=0.8)
            smooth = np.exp(_smooth(np.log(y))) if log else _smooth(y)  # mid-way as the eye sees it
            panel.plot(x, smooth, color=LINE, linewidth=1.8)
        else:
            panel.plot(x, y, color=LINE, linewidth=1.6, marker="o", markersize=3.5)
        if log:
            panel.set_yscale("log")
        panel.set_title(name, loc="left", fontsize=11, color="#222222", parse_math=False)
        last = f"last {y[-1]:.4g}" if len(y) else "no finite value"
        panel.set_title(last, loc="right", fontsize=9, color="#777777")
        panel.set_xlabel("step", fontsize=9, color="#555555")
        panel.set_ylabel(name, fontsize=9, color="#555555", parse_math=False)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.tick_params(labelsize=8, colors="#555555", which="both")
        panel.grid(color="#e4e6ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color("#b0b4bb")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _tiles(argument: str, images: Tensor) -> np.ndarray:
    """Floats (N, C, H, W) -> uint8 (N, H, W, 3)."""
    if not isinstance(images, Tensor) or not images.dtype.is_floating_point:
        raise TypeError(f"{argument} is {_kind(images)}; want a tensor of floats")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"{argument} has shape {tuple(images.shape)}; want (N, C, H, W), C 1 or 3, none of them 0"
        )
    images = images.detach().float().cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    tiles = pixels(images.nan_to_num(0))
    tiles[~images.isfinite().all(-1).numpy()] = NOT_FINITE
    return tiles


def _rows(tiles: np.ndarray, columns: int) -> list[np.ndarray]:
    _check_count("columns", columns)
    return [tiles[start : start + columns] for start in range(0, len(tiles), columns)]


def _enlarged(tiles: np.ndarray, scale: int | None = None) -> tuple[int, int]:
    """(width, height) of the tiles on the sheet."""
    height, width = tiles.shape[1:3]
    scale = scale or -(-TILE // max(height, width))
    return width * scale, height * scale


def _sheet_of_pairs(
    above: np.ndarray, below: np.ndarray, columns: int, tile: tuple[int, int], captions: tuple[str, str]
) -> bytes:
    rows = [row for pair in zip(_rows(above, columns), _rows(below, columns), strict=True) for row in pair]
    return _sheet(rows, tile, captions * (len(rows) // 2), paired=True)


def _sheet(
    rows: list[np.ndarray], tile: tuple[int, int], labels: Sequence[str] | None = None, paired: bool = False
) -> bytes:
    """Tiles uint8 (n, h, w, 3) row below row; if ``paired``, each two rows stand close together."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = tile
    font = ImageFont.load_default(size=min(15, max(8, height)))
    gutter = math.ceil(max(font.getlength(label) for label in labels)) + 12 if labels else 0
    tops = [MARGIN]
    for row in range(1, len(rows)):
        tops.append(tops[-1] + height + (4 * GAP if paired and row % 2 == 0 else GAP))
    full_width = 2 * MARGIN + gutter + len(rows[0]) * (width + GAP) - GAP
    sheet = Image.new("RGB", (full_width, tops[-1] + height + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (tiles, top) in enumerate(zip(rows, tops, strict=True)):
        if labels:
            where = (MARGIN + gutter - 12, top + height / 2)
            draw.text(where, labels[row], fill=INK, font=font, anchor="rm")
        for column, pixels in enumerate(tiles):
            picture = Image.fromarray(pixels).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + gutter + column * (width + GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _palette(count: int) -> np.ndarray:
    """uint8 (count, 3): colours spread evenly over hue and lightness of Oklab, neighbours far apart."""
    index = np.arange(count)
    hue = 2 * np.pi * (index * 0.7548776662466927 % 1)  # these two steps fill a square evenly (R2 sequence)
    lightness = 0.45 + 0.45 * (index * 0.5698402909980532 % 1)
    chroma = 0.14
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    # Oklab to linear sRGB, after Ottosson (2020)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    linear = np.stack([red, green, blue], axis=-1).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A moving average under a bell of a 25th of the series, renormalised at the ends."""
    bell = np.hanning(len(values) // 25 + 3)
    return np.convolve(values, bell, "same") / np.convolve(np.ones(len(values)), bell, "same")


def _is_loss(name: str) -> bool:
    return any(word in name.lower() for word in ("loss", "mse", "error", "nll"))


def _check_count(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} is {value!r}; want an integer")
    if value < 1:
        raise ValueError(f"{argument} is {value}; want 1 or more")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
