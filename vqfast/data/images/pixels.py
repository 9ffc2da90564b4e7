"""Values of pixels: their range, and squares cut out of images."""

from __future__ import annotations

import numpy as np

from vqfast.data.images.picture import square


def first_outside(values: np.ndarray, white: int) -> tuple[int, ...] | None:
    """The place of the first value that isn't in 0..white, if there is one."""
    if values.min() >= 0 and values.max() <= white:  # NaN fails both
        return None
    return tuple(map(int, np.argwhere(~((values >= 0) & (values <= white)))[0]))


def as_unit(values: np.ndarray, white: int) -> np.ndarray:
    """Values in 0..white as float32 in [0, 1]."""
    return values.astype(np.float32) / np.float32(white)


def squares(images: np.ndarray, size: int) -> np.ndarray:
    """``(n, H, W)``, uint8 or float32 in [0, 1], to ``(n, size, size)``: see ``square``."""
    from PIL import Image

    stack = np.stack([np.asarray(square(Image.fromarray(image), size)) for image in images])
    return stack if stack.dtype == np.uint8 else stack.clip(0, 1)  # bicubic floats overshoot
