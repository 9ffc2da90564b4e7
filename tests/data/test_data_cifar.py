"""CIFAR-10's binary files, made by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.sources import RNG, pixels, same
from vqfast.data import load_images


def batch(path: Path, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes a file of ``num`` records: a byte for the label, then the red, the green and the blue plane."""
    images, labels = pixels(num, 3, 32, 32), RNG.integers(0, 10, num).astype(np.uint8)
    path.write_bytes(b"".join(bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True)))
    return images, labels


def test_a_folder_is_its_five_training_batches(tmp_path: Path) -> None:
    batches = [batch(tmp_path / f"data_batch_{number}.bin", 2 + number) for number in range(1, 6)]
    batch(tmp_path / "test_batch.bin", 4)
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    found = load_images(tmp_path)
    assert same(found, np.concatenate([images for images, _ in batches]))
    assert found.labels is not None and found.labels.dtype == np.int64
    assert found.labels.tolist() == np.concatenate([labels for _, labels in batches]).tolist()
    stamp, fingerprint = found.stamp, found.fingerprint
    assert load_images(tmp_path).stamp == stamp
    batch(tmp_path / "data_batch_5.bin", 7)
    assert load_images(tmp_path).stamp != stamp and load_images(tmp_path).fingerprint != fingerprint
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"has data_batch_1.bin but lacks data_batch_3\.bin; want all five"):
        load_images(tmp_path)


def test_one_file_is_mapped_and_resized(tmp_path: Path) -> None:
    images, labels = batch(tmp_path / "test_batch.bin", 3)
    found = load_images(tmp_path / "test_batch.bin")
    assert same(found, images) and found.num_classes == labels.max() + 1
    small = load_images(tmp_path / "test_batch.bin", size=16, channels=1)
    assert small.batch([2, 0]).shape == (2, 1, 16, 16)


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    batch(path, 3)
    whole = path.read_bytes()
    for content, told in (
        (whole[:-1], r"cannot read CIFAR-10 file: it has 9218 bytes; want a multiple of 3073"),
        (b"", "it has 0 bytes; want a multiple of 3073"),
        (whole[:3073] + b"\x0a" + whole[3074:], r"it has the label 10 in record 1; want 0\.\.9"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            load_images(path)
