"""Values of every kind: wide integers at their real depth, floats, alpha, palettes, rotation, animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.data.sources import RNG, folder, pixels, png16, saved
from vqfast.data import load_images


def wide(bits: int, *shape: int) -> np.ndarray:
    array = RNG.integers(0, 2**bits, shape).astype(np.uint16)
    array.flat[0] = 2**bits - 1
    return array


def unit(array: np.ndarray, bits: int) -> torch.Tensor:
    """(n, H, W, C) as the images that it should become."""
    return (torch.from_numpy(array.astype(np.float64)) / (2**bits - 1)).float().movedim(3, 1)


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_files(tmp_path: Path, bits: int, channels: int) -> None:
    array = wide(bits, 3, 5, 6, channels)
    array[0, ..., 0] = 2**bits - 1
    for i, each in enumerate(array):
        (tmp_path / f"{i}.png").write_bytes(png16(each))
    images = load_images(str(tmp_path))
    colours = array[..., :1] if channels < 3 else array[..., :3]
    assert images.findings["depth"] == bits
    torch.testing.assert_close(images.batch(range(3)), unit(colours, bits), rtol=0, atol=1e-7)
    assert load_images(str(tmp_path), size=3).batch([0]).shape == (1, colours.shape[-1], 3, 3)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_other_wide_files(tmp_path: Path, compression: str, byte_order: str) -> None:
    array = wide(12, 7, 5)
    Image.fromarray(array.astype(f"{byte_order}u2")).save(tmp_path / "a.tif", compression=compression)
    Image.fromarray(array.astype(np.int32)).save(tmp_path / "b.tif")
    images = load_images(str(tmp_path))
    assert images.findings["depth"] == 12
    torch.testing.assert_close(images.batch([0, 1]), unit(np.stack([array, array])[..., None], 12))
    Image.fromarray(np.full((7, 5), -1, np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(ValueError, match=r"c\.tif: cannot read image: it has the value -1; want 0 or more"):
        load_images(str(tmp_path))


def test_a_pgm_says_its_depth(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([4095, 1365], ">u2").tobytes())
    found = load_images(str(tmp_path)).batch([0])
    torch.testing.assert_close(found.flatten(), torch.tensor([1, 1 / 3]), rtol=0, atol=1e-4)


def test_wide_and_other_files_together(tmp_path: Path) -> None:
    deep, grey, colour = wide(12, 4, 4, 1), pixels(4, 4), pixels(4, 4, 3)
    folder(tmp_path, b_png=grey, c_png=colour)
    (tmp_path / "a.png").write_bytes(png16(deep))
    found = load_images(str(tmp_path)).batch([2, 0, 1])
    assert torch.equal(found[0], unit(colour[None], 8)[0])
    assert torch.equal(found[1], unit(deep[None], 12)[0].expand(3, 4, 4))
    assert torch.equal(found[2], unit(grey[None, ..., None], 8)[0].expand(3, 4, 4))


def test_a_depth_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(np.full((2, 2, 1), 1000, np.uint16)))
    saved(tmp_path / "a.npy", np.full((1, 2, 2), 1000, np.int64))
    for source in (tmp_path, tmp_path / "a.npy"):
        torch.testing.assert_close(load_images(str(source), depth=12).batch([0]).max().item(), 1000 / 4095)
        with pytest.raises(ValueError, match=r"1000.*; want integers of 9 bits"):
            load_images(str(source), depth=9).batch([0])
    for depth, error in ((0, ValueError), (64, ValueError), (8.0, TypeError)):
        with pytest.raises(error, match="depth is "):
            load_images(str(tmp_path), depth=depth)


@pytest.mark.parametrize("dtype", ["u2", ">u2", "i2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("bits", [4, 8, 12])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_integer_arrays(tmp_path: Path, dtype: str, bits: int, suffix: str) -> None:
    array = wide(bits, 5, 4, 3, 3)
    path = tmp_path / f"x{suffix}"
    np.save(path, array.astype(dtype)) if suffix == ".npy" else np.savez(path, array.astype(dtype))
    images = load_images(str(path))
    assert images.findings["depth"] == bits
    torch.testing.assert_close(images.batch(range(5)), unit(array, bits), rtol=0, atol=1e-7)


def test_masks_and_negative_integers(tmp_path: Path) -> None:
    mask = RNG.random((3, 4, 4)) > 0.5
    assert torch.equal(
        load_images(saved(tmp_path / "x.npy", mask)).batch([1])[0, 0] > 0.5, torch.tensor(mask[1])
    )
    images = load_images(saved(tmp_path / "x.npy", np.array([[[5]], [[-3]]])))
    with pytest.raises(ValueError, match="has -3 in image 1; want integers of 3 bits"):
        images.batch([0, 1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_to_255(tmp_path: Path, dtype: str) -> None:
    array = pixels(6, 4, 4, 3)
    array[0] = 0  # a black image among them
    images = load_images(saved(tmp_path / "x.npy", array.astype(dtype)))
    assert torch.equal(images.batch(range(6)), unit(array, 8))
    array = array.astype(dtype)
    array[3, 0, 0, 0] = -0.5
    with pytest.raises(ValueError, match=r"has -0\.5 in image 3; want floats in \[0, 255\]"):
        load_images(saved(tmp_path / "x.npy", array)).batch([3])
    for most in (16, 1000):  # of no range that is known
        said = r"x\.npy has floats .*; want floats in \[0, 1\], or in 0\.\.255 with the largest above 127"
        with pytest.raises(ValueError, match=said):
            load_images(saved(tmp_path / "x.npy", RNG.random((3, 4, 4)) * most))


def test_alpha_of_arrays_is_dropped(tmp_path: Path) -> None:
    array = pixels(3, 5, 6, 4)
    for layout in (array, array.transpose(0, 3, 1, 2)):
        assert torch.equal(
            load_images(saved(tmp_path / "x.npy", layout)).batch([0, 2]), unit(array[[0, 2], ..., :3], 8)
        )
    narrow = pixels(2, 3, 5, 4)  # C comes first where that fits, as before
    assert load_images(saved(tmp_path / "x.npy", narrow)).shape == (3, 5, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".webp", ".bmp", ".ppm", ".jp2", ".qoi"])
def test_every_mode_as_pillow_converts_it(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    try:
        Image.fromarray(pixels(8, 8, 3)).convert(mode).save(path)
        with Image.open(path) as picture:
            truth = np.asarray(picture.convert("RGB"))
    except (KeyError, OSError, ValueError):  # this format has no such mode, or this Pillow
        return
    assert torch.equal(load_images(str(path), channels=3).batch([0]), unit(truth[None], 8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_rotation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels(8, 16, 3)).save(path, exif=exif, **({"quality": 90} if suffix == ".jpg" else {}))
    with Image.open(path) as picture:
        truth = np.asarray(ImageOps.exif_transpose(picture))
    images = load_images(str(tmp_path))
    assert images.shape == (3, *truth.shape[:2]) == (3, *((8, 16) if orientation < 5 else (16, 8)))
    assert torch.equal(images.batch([0]), unit(truth[None], 8))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_an_animation_is_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], **options)
    assert load_images(str(tmp_path)).batch([0])[0, :, 4, 4].tolist() == [1, 0, 0]
