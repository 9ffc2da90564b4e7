"""Images in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.sources import folder, pixels, same
from vqfast.data import load_images
from vqfast.data.images.picture import SUFFIXES


def test_class_folders(tmp_path: Path) -> None:
    arrays = {f"{c}__{i}_png": pixels(4, 6, 3) for c in ("dog", "cat__deep") for i in (1, 0)}
    arrays["ant__z_BMP"] = pixels(4, 6, 3)
    images = load_images(folder(tmp_path, **arrays))
    (tmp_path / "dog" / "readme.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    (tmp_path / "dog" / "._0.png").write_bytes(b"")  # as macOS leaves them
    again = load_images(str(tmp_path))
    order = ["ant__z_BMP", "cat__deep__0_png", "cat__deep__1_png", "dog__0_png", "dog__1_png"]
    for found in (images, again):
        assert found.labels.tolist() == [0, 1, 1, 2, 2] and found.num_classes == 3
        assert found.labels.dtype == np.int64
        assert same(found, np.stack([arrays[name].transpose(2, 0, 1) for name in order]))
    assert images.fingerprint == again.fingerprint


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"x{suffix.upper()}")
    images = load_images(str(tmp_path), channels=3).batch([0])
    np.testing.assert_allclose(images[0, :, 4, 4], [1, 0, 0], atol=0.03)


def test_modes(tmp_path: Path) -> None:
    grey = pixels(4, 4)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey > 127).save(tmp_path / "1.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "2.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 255).save(tmp_path / "3.png")
    all_grey = np.stack([grey, (grey > 127) * np.uint8(255), grey])[:, None]
    deep = (torch.from_numpy(grey).float() * 256 + 255) / 65535
    for channels in (1, 3):
        images = load_images(str(tmp_path), channels=channels).batch(range(4))
        assert torch.equal(images[:3], torch.from_numpy(all_grey.repeat(channels, axis=1)).float() / 255)
        assert torch.equal(images[3], deep.expand(channels, 4, 4))
    (tmp_path / "3.png").unlink()

    rgba = pixels(4, 4, 4)
    Image.fromarray(rgba).save(tmp_path / "4.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    palette.save(tmp_path / "5.png", transparency=bytes(range(16)))  # Pillow warns of these
    mixed = [*all_grey.repeat(3, axis=1), rgba[..., :3].transpose(2, 0, 1)]
    mixed.append(np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert same(load_images(str(tmp_path)), np.stack(mixed))

    one = load_images(str(tmp_path), channels=1).batch([3, 0])
    luma = (rgba[..., :3] @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(one[0, 0], luma, atol=1e-5)
    np.testing.assert_allclose(one[1, 0], grey / 255, atol=1e-5)
    assert one.max() <= 1


def test_files_of_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff: cannot read image: it has 32-bit floats; want integers"):
        load_images(str(tmp_path))


def test_unequal_sizes(tmp_path: Path) -> None:
    source = folder(tmp_path, a_png=pixels(4, 6), b_png=pixels(4, 6), c_png=pixels(6, 4))
    with pytest.raises(ValueError, match=r"a\.png is 6x4, c\.png is 4x6; --size"):
        load_images(source)
    images = load_images(source, size=5)
    assert images.shape == (1, 5, 5) and images.batch([2, 0]).shape == (2, 1, 5, 5)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"want at least one image|has no image in it"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.webp", "x.tif", "x.bmp"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    Image.fromarray(pixels(64, 64, 3)).save(tmp_path / "0.png")
    Image.fromarray(pixels(64, 64, 3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}: cannot read image: ") as caught:  # at the latest in batch
        load_images(str(tmp_path)).batch([0, 1])
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_bytes(content[:6])
    with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
        load_images(str(tmp_path))


def test_a_truncated_png_or_jpeg_spoils_only_its_own_batches(tmp_path: Path) -> None:
    good = pixels(64, 64)
    folder(tmp_path, a_png=good, b_png=good)
    Image.fromarray(good).save(tmp_path / "c.jpg")
    for name in ("b.png", "c.jpg"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    images = load_images(str(tmp_path))
    assert images.batch([0]).shape == (1, 1, 64, 64)
    for row, name in ((1, "b.png"), (2, "c.jpg")):
        with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
            images.batch([0, row])


def test_files_that_change_after_loading(tmp_path: Path) -> None:
    images = load_images(folder(tmp_path, a_png=pixels(4, 4), b_png=pixels(4, 4)))
    folder(tmp_path, a_png=pixels(4, 5))
    (tmp_path / "b.png").unlink()
    for row, name in enumerate(("a.png", "b.png")):
        with pytest.raises(ValueError, match=f"{name}: cannot read image: "):
            images.batch([row])
