"""Values of pixels, as 0..1, and their squares."""

from __future__ import annotations

import numpy as np

from vqfast.data.picture import square


def outside(values: np.ndarray, white: int) -> tuple[int, ...] | None:
    """Where the first value is that isn't in 0..white, if there is one."""
    if values.min() >= 0 and values.max() <= white:  # NaN fails both
        return None
    return tuple(np.argwhere(~((values >= 0) & (values <= white)))[0])


def scaled(values: np.ndarray, white: int) -> np.ndarray:
    """0..white as float32 in [0, 1]."""
    return values.astype(np.float32) / np.float32(white)


def fitted(images: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W), uint8 or float32 in [0, 1] -> (n, size, size): see ``square``."""
    from PIL import Image

    stack = np.stack([np.asarray(square(Image.fromarray(image), size)) for image in images])
    return stack if stack.dtype == np.uint8 else stack.clip(0, 1)  # bicubic floats overshoot
