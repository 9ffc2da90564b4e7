from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vqfast.data.code_map import png
from vqfast.data.images.sheet import GAP, GROUND, MARGIN, grid, show_codes, show_pairs

GENERATOR = torch.Generator().manual_seed(0)


def decoded(png: bytes) -> np.ndarray:
    """uint8 (height, width, 3)."""
    assert png.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.mode == "RGB" and not picture.info
        return np.asarray(picture)


def random_images(count: int, channels: int, height: int, width: int) -> tuple[np.ndarray, Tensor]:
    """The same images as uint8 (N, H, W, 3) and as floats (N, C, H, W)."""
    whole = torch.randint(0, 256, (count, channels, height, width), generator=GENERATOR)
    return whole.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).byte().numpy(), whole / 255


def tile(sheet: np.ndarray, left: int, top: int, width: int, height: int, scale: int) -> np.ndarray:
    """A tile at its own size, after checking that every pixel of it was enlarged evenly."""
    found = sheet[top : top + height * scale, left : left + width * scale]
    small = found[::scale, ::scale]
    assert np.array_equal(small.repeat(scale, axis=0).repeat(scale, axis=1), found)
    return small


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 7),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    columns=st.integers(1, 9),
    scale=st.integers(1, 4),
)
def test_grid(count: int, channels: int, height: int, width: int, columns: int, scale: int) -> None:
    expected, images = random_images(count, channels, height, width)
    sheet = decoded(grid(images, columns=columns, scale=scale)).copy()
    across, down = min(columns, count), -(-count // columns)
    assert sheet.shape == (
        2 * MARGIN + down * height * scale + (down - 1) * GAP,
        2 * MARGIN + across * width * scale + (across - 1) * GAP,
        3,
    )
    for place, image in enumerate(expected):
        top = MARGIN + place // columns * (height * scale + GAP)
        left = MARGIN + place % columns * (width * scale + GAP)
        assert np.array_equal(tile(sheet, left, top, width, height, scale), image)
        sheet[top : top + height * scale, left : left + width * scale] = GROUND
    assert np.all(sheet == GROUND)  # nothing else is drawn


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 3), (32, 2), (64, 1), (200, 1)])
def test_small_images_are_enlarged_to_64_pixels(side: int, scale: int) -> None:
    expected, images = random_images(1, 3, side, side)
    sheet = decoded(grid(images, columns=1))
    assert sheet.shape[0] == 2 * MARGIN + side * scale
    assert np.array_equal(tile(sheet, MARGIN, MARGIN, side, side, scale), expected[0])


def test_captions_stand_left_of_their_lines() -> None:
    expected, images = random_images(4, 1, 16, 16)
    sheet = decoded(grid(images, columns=2, captions=["one", "a longer label"]))
    gutter = sheet.shape[1] - (2 * MARGIN + 2 * 64 + GAP)
    assert gutter > 60
    assert np.array_equal(tile(sheet, MARGIN + gutter, MARGIN, 16, 16, 4), expected[0])
    ink = (sheet[:, : MARGIN + gutter] != GROUND).any(-1)
    assert not ink[:, :MARGIN].any() and not ink[:, -8:].any()  # inside the margin, clear of the tiles
    upper, lower = ink[MARGIN : MARGIN + 64], ink[MARGIN + 64 + GAP : -MARGIN]
    assert 20 < upper.sum() < lower.sum() and upper.sum() + lower.sum() == ink.sum()


def test_out_of_range_is_clamped_and_not_finite_is_magenta() -> None:
    images = torch.tensor([[-0.5, 1.5], [0.5, float("nan")], [float("inf"), -float("inf")]]).view(1, 1, 3, 2)
    found = tile(decoded(grid(images, columns=1, scale=2)), MARGIN, MARGIN, 2, 3, 2)
    magenta = [255, 0, 255]
    assert found.tolist() == [[[0] * 3, [255] * 3], [[128] * 3, magenta], [magenta, magenta]]
    partly = torch.tensor([0.0, float("nan"), 1.0]).view(1, 3, 1, 1)
    assert decoded(grid(partly, columns=1))[MARGIN, MARGIN].tolist() == magenta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_with_gradient(dtype: torch.dtype) -> None:
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).to(dtype).requires_grad_()
    sheet = decoded(grid(images, columns=2, scale=1))
    assert sheet[MARGIN, MARGIN].tolist() == [0] * 3
    assert sheet[MARGIN, MARGIN + 1 + GAP].tolist() == [255] * 3


def test_pairs_put_originals_above_reconstructions() -> None:
    above, originals = random_images(5, 3, 32, 32)
    below, reconstructions = random_images(5, 3, 32, 32)
    sheet = decoded(show_pairs(originals, reconstructions, columns=3))
    gutter = sheet.shape[1] - (2 * MARGIN + 3 * 64 + 2 * GAP)
    assert gutter > 60  # room for the captions, which are there:
    for top in (MARGIN, MARGIN + 64 + GAP):
        assert (sheet[top : top + 64, MARGIN : MARGIN + gutter] != GROUND).any()
    second = sheet.shape[0] - MARGIN - 2 * 64 - GAP  # the pairs stand further apart than their lines
    assert second > MARGIN + 3 * (64 + GAP) - 64
    for place in range(5):
        left, top = MARGIN + gutter + place % 3 * (64 + GAP), second if place >= 3 else MARGIN
        assert np.array_equal(tile(sheet, left, top, 32, 32, 2), above[place])
        assert np.array_equal(tile(sheet, left, top + 64 + GAP, 32, 32, 2), below[place])


def test_code_maps_give_every_code_its_own_colour() -> None:
    codes = torch.arange(1024).view(1, 32, 32)
    colours = tile(
        decoded(show_codes(codes, 1024, originals=None, columns=1)), MARGIN, MARGIN, 32, 32, 2
    ).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) == 1024
    few = tile(
        decoded(show_codes(codes[:, :4, :4] % 16, 16, originals=None, columns=1)), MARGIN, MARGIN, 4, 4, 16
    )
    assert np.array_equal(few[0], colours[:4])
    distances = np.linalg.norm(colours[:8, None].astype(float) - colours[None, :8], axis=-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 40


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_code_maps_under_their_originals(dtype: torch.dtype) -> None:
    expected, originals = random_images(3, 1, 28, 28)
    codes = torch.randint(0, 10, (3, 7, 7), generator=GENERATOR).to(dtype)
    palette = decoded(show_codes(torch.arange(10).view(1, 1, 10), 10, originals=None, columns=1))[
        MARGIN, MARGIN:-MARGIN:7
    ]
    sheet = decoded(show_codes(codes, 10, originals=originals, columns=3))
    gutter = sheet.shape[1] - (2 * MARGIN + 3 * 84 + 2 * GAP)
    for place in range(3):
        left = MARGIN + gutter + place * (84 + GAP)
        assert np.array_equal(tile(sheet, left, MARGIN, 28, 28, 3), expected[place])
        below = tile(sheet, left, MARGIN + 84 + GAP, 7, 7, 12)
        assert np.array_equal(below, palette[codes[place].long().numpy()])


ONE = torch.zeros(1, 1, 4, 4)
CODES = torch.zeros(1, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: grid(np.zeros((1, 1, 4, 4)), columns=1),
            TypeError,
            "images is ndarray; want a tensor of floats",
        ),
        (lambda: grid(ONE.byte(), columns=1), TypeError, "images is torch.uint8; want"),
        (lambda: grid(ONE[0], columns=1), ValueError, r"images has shape \(1, 4, 4\)"),
        (lambda: grid(torch.zeros(1, 2, 4, 4), columns=1), ValueError, "images has .*C 1 or 3"),
        (lambda: grid(ONE[:0], columns=1), ValueError, "images has shape"),
        (lambda: grid(ONE, columns=0), ValueError, "columns is 0; want a positive integer"),
        (lambda: grid(ONE, columns=1.5), TypeError, "columns is 1.5; want a positive integer"),
        (lambda: grid(ONE, columns=1, scale=0), ValueError, "scale"),
        (
            lambda: grid(ONE, columns=1, captions=["a", "b"]),
            ValueError,
            "captions has 2 entries; want 1, one for each line",
        ),
        (lambda: grid(ONE, columns=1, captions=[]), ValueError, "captions"),
        (
            lambda: show_pairs(ONE, torch.zeros(2, 1, 4, 4), columns=1),
            ValueError,
            "reconstructions has shape .*; want the originals",
        ),
        (lambda: show_pairs(ONE, None, columns=1), TypeError, "reconstructions is NoneType"),
        (lambda: show_codes(CODES, 0, originals=None, columns=1), ValueError, "num_embeddings"),
        (
            lambda: show_codes(CODES + 4, 4, originals=None, columns=1),
            ValueError,
            r"indices has values 4\.\.4; want 0\.\.3",
        ),
        (lambda: show_codes(CODES - 1, 4, originals=None, columns=1), ValueError, "indices has .*; want"),
        (
            lambda: show_codes(CODES.float(), 4, originals=None, columns=1),
            TypeError,
            "indices has dtype torch.float32",
        ),
        (
            lambda: show_codes(CODES.bool(), 4, originals=None, columns=1),
            TypeError,
            "indices has dtype torch.bool",
        ),
        (lambda: show_codes(CODES[0], 4, originals=None, columns=1), ValueError, "indices has .*; want"),
        (
            lambda: show_codes(CODES, 4, originals=torch.zeros(2, 1, 4, 4), columns=1),
            ValueError,
            "originals has 2 images; want 1",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_colour_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    with Image.open(io.BytesIO(png(image))) as opened:
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), image.transpose(1, 2, 0))
