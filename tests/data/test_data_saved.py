"""Data sets that the library ``datasets`` saved: the same images and labels, by numbers; damage is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqfast.data import Unreadable, load_images

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
datasets.disable_progress_bars()

PIXELS = np.random.default_rng(0).integers(256, size=(6, 5, 4, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]


def dataset() -> datasets.Dataset:
    kinds = {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])}
    columns = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "kind": LABELS}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def test_images_and_labels(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": dataset().select([0]), "train": dataset()}).save_to_disk(tmp_path / "two")
    wanted = torch.from_numpy(PIXELS).movedim(-1, 1) / 255
    for name in ("one", "two"):
        images = load_images(tmp_path / name)
        assert torch.equal(images.batch([3, 5, 0]), wanted[[3, 5, 0]])
        assert images.labels is not None and images.labels.tolist() == LABELS
        images.check()
    one, two = load_images(tmp_path / "one"), load_images(tmp_path / "two")
    assert one.fingerprint == two.fingerprint and one.stamp != two.stamp
    assert load_images(tmp_path / "one", size=3, channels=1).shape == (1, 3, 3)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataset().add_column("label", LABELS).cast_column("image", datasets.Image(decode=False))
    broken = broken.map(
        lambda row: {"image": {"bytes": row["image"]["bytes"][:50], "path": None}}, keep_in_memory=True
    )
    broken.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "broken")
    with pytest.raises(Unreadable, match="broken/000000000: cannot read image"):
        load_images(tmp_path / "broken").check()
    dataset().remove_columns("image").save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"columns of images \[\]; want one"):
        load_images(tmp_path / "none")
    datasets.DatasetDict({"a": dataset(), "b": dataset()}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="splits a, b; want one called train"):
        load_images(tmp_path / "splits")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="want the package datasets installed"):
        load_images(tmp_path / "splits")
