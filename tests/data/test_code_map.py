"""Grids of codes as pictures."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vqfast.data.code_map import code_map, palette


@pytest.mark.parametrize("shape, lined_up", [((5,), (1, 5)), ((2, 3), (2, 3)), ((4, 2, 3), (2, 12))])
def test_a_pixel_is_a_code(shape: tuple[int, ...], lined_up: tuple[int, int]) -> None:
    indices = torch.arange(math.prod(shape)).view(shape) % 7
    pixels = np.asarray(Image.open(io.BytesIO(code_map(indices, 7))))
    flat = indices.view(1, -1) if len(shape) == 1 else torch.cat(list(indices.view(-1, *shape[-2:])), 1)
    assert flat.shape == lined_up
    np.testing.assert_array_equal(pixels, palette(7)[flat.numpy()])


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.6"):
        code_map(torch.tensor([[7]]), 7)
    for shape in ((), (0, 3), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="want"):
            code_map(torch.zeros(shape, dtype=torch.int64), 7)
