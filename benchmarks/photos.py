"""Crops of photographs: of a folder, or of the photographs that installed packages bring."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.core import AbsentError

BROUGHT = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)
ENDINGS = (".jpg", ".jpeg", ".png")
HELD_OUT = 4  # every fourth photograph, so that no photograph is on both sides


def photographs(folder: Path | None = None) -> list[Path]:
    """The photographs in ``folder``, or those that packages bring.

    Raises:
        AbsentError: there are fewer than two.
    """
    if folder is None:
        found = [path for name in BROUGHT if (path := _brought(name)) and path.exists()]
    else:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(found) < 2:
        where = folder or 'the packages of the extra "bench"'
        raise AbsentError(f"{len(found)} photographs in {where}; want 2 or more")
    return found


def _brought(name: str) -> Path | None:
    """A file of a package, which isn't imported."""
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    return (
        Path(spec.submodule_search_locations[0], inside) if spec and spec.submodule_search_locations else None
    )


def crops(paths: list[Path], num: int, side: int) -> Tensor:
    """Random crops, the same in each call and as many of each photograph.

    Returns:
        float32 ``(num, 3, side, side)`` in 0 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0))
    found = []
    for i in range(num):
        pixels = images[i % len(images)]
        top, left = (
            int(torch.randint(size - side + 1, (), generator=generator)) for size in pixels.shape[1:]
        )
        found.append(pixels[:, top : top + side, left : left + side])
    return torch.stack(found).float() / 255


def split(folder: Path | None, sizes: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Crops to train on and crops of the photographs that are held out, as many as ``sizes`` says."""
    found = photographs(folder)
    held_out = found[1::HELD_OUT]
    rest = [path for path in found if path not in held_out]
    return crops(rest, sizes[0], side), crops(held_out, sizes[1], side)
