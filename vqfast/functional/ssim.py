"""The structural similarity of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_device, check_tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
C1, C2 = 0.01**2, 0.03**2  # which keep the two fractions finite


def has_ssim(shape: tuple[int, ...]) -> bool:
    """Whether items of a shape are images ``(C, H, W)`` of at least the window's size."""
    return len(shape) == 3 and min(shape[1:]) >= WINDOW


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The structural similarity (SSIM) of pairs of images, after Wang et al. 2004, section III.

    It is the mean over channels and over all places where the window, a Gaussian of 11 x 11 pixels with a
    standard deviation of 1.5, lies within the image.

    Args:
        x: floats ``(N, C, H, W)`` in [0, 1], H and W 11 or more.
        y: of the same shape.

    Returns:
        float64 ``(N,)``, 1 for equal images.

    Raises:
        TypeError: ``x`` or ``y`` isn't a tensor.
        ValueError: shapes or devices differ, or the images are smaller than the window.

    Example:
        >>> x = torch.rand(2, 3, 16, 16)
        >>> vqfast.functional.ssim(x, x)
        tensor([1., 1.], dtype=torch.float64)
    """
    check_tensor("x", x)
    check_tensor("y", y)
    check_device("x", x, "y", y.device)
    if x.shape != y.shape or x.ndim != 4 or not has_ssim(tuple(x.shape[1:])):
        wanted = f"the same (N, C, H, W) twice, H and W {WINDOW} or more"
        raise ValueError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; want {wanted}")
    x, y = x.double(), y.double()
    down, across = (_windows(size, x.device) for size in x.shape[2:])
    mean_x, mean_y, xx, yy, xy = down @ torch.stack([x, y, x * x, y * y, x * y]) @ across.T
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * cov + C2) / (var_x + var_y + C2)
    similarity: Tensor = luminance * structure
    return similarity.flatten(1).mean(1)


def _windows(size: int, device: torch.device) -> Tensor:
    """The weights of each place of the window along an axis, ``(size - WINDOW + 1, size)``."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), 0)
    return torch.stack([F.pad(weights, (place, size - WINDOW - place)) for place in range(size - WINDOW + 1)])
