"""The structural similarity of images, against its definition and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqfast.functional import ssim


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A smooth colour picture ``(3, 24, 20)`` and a fainter copy of it with ripples."""
    down, across = np.mgrid[:24, :20]
    x = np.stack([(np.sin(down * (i + 1) / 3) * np.cos(across / (i + 2)) + 1) / 2 for i in range(3)])
    return x, np.clip(x * 0.8 + 0.1 * np.sin(down * across), 0, 1)


def defined(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / np.outer(g, g).sum()
    values = []
    for a, b in zip(x, y, strict=True):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p, q = (image[top : top + 11, left : left + 11] for image in (a, b))
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
                cov = (w * (p - mp) * (q - mq)).sum()
                above = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(above / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(values))


def test_definition() -> None:
    x, y = pictures()
    pairs = torch.from_numpy(np.stack([x, y])), torch.from_numpy(np.stack([y, y]))
    np.testing.assert_allclose(ssim(*pairs), [defined(x, y), 1], rtol=1e-12)
    grey = (torch.from_numpy(image[None, :1]).float() for image in (x, y))
    assert ssim(*grey).item() == pytest.approx(defined(x[:1], y[:1]), rel=1e-5)


def test_scikit_image() -> None:
    """The figures are those of scikit-image 0.26: ``structural_similarity(x, y, gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1.0)``, for colour with ``channel_axis=0``."""
    x, y = (torch.from_numpy(image)[None] for image in pictures())
    found = ssim(x, y).item(), ssim(x[:, :1], y[:, :1]).item()
    assert found == pytest.approx((0.8838996814013699, 0.8866164271891273), rel=1e-10)


@pytest.mark.parametrize("shapes", [((1, 3, 10, 20), (1, 3, 10, 20)), ((1, 1, 16, 16), (2, 1, 16, 16))])
def test_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="want the same"):
        ssim(*map(torch.zeros, shapes))
