"""Grids of codes as pictures, a colour for each code."""

from __future__ import annotations

import io

import numpy as np
from torch import Tensor

from vqfast.checks import check_indices


def code_map(indices: Tensor, num_embeddings: int) -> bytes:
    """A grid of codes, one pixel a code, as a PNG.

    A code has the same colour in all pictures of one ``num_embeddings``.

    Args:
        indices: integers ``(T,)``, which make one line, ``(H, W)``, or ``(T, H, W)``, whose frames stand side
            by side; in ``0..num_embeddings - 1``.

    Raises:
        TypeError, ValueError: ``indices`` has the wrong type or shape, or is out of range.

    >>> import torch
    >>> code_map(torch.zeros(4, 4, dtype=torch.int64), 8)[1:4]
    b'PNG'
    """
    check_indices("indices", indices, num_embeddings)
    if not 1 <= indices.ndim <= 3 or not indices.numel():
        raise ValueError(f"indices has shape {tuple(indices.shape)}; want (T,), (H, W) or (T, H, W)")
    grid = indices.reshape(-1, *indices.shape[-2:]) if indices.ndim > 1 else indices.view(1, 1, -1)
    pixels = palette(num_embeddings)[np.concatenate(list(grid.cpu().numpy()), axis=1)]
    return png(pixels.transpose(2, 0, 1))


def png(image: np.ndarray) -> bytes:
    """uint8 ``(C, H, W)``, C 1 or 3, as a PNG of H x W pixels, grey or RGB."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def palette(count: int) -> np.ndarray:
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
