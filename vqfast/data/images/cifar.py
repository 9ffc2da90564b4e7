"""The binary files of CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqfast.data import disk
from vqfast.files import open_file

RECORD = np.dtype([("label", np.uint8), ("image", np.uint8, (3, 32, 32))])  # 3073 bytes
NUM_CLASSES = 10
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]
FILE = re.compile(r"(data_batch_\d+|test_batch)\.bin")


def cifar_files(path: Path) -> list[Path]:
    """The files of CIFAR-10 that a path names: a file, or a folder's five batches of training images.

    Raises:
        ValueError: a folder has some of the batches only.
    """
    if path.is_file():
        return [path] if FILE.fullmatch(path.name) else []
    there = [name for name in BATCHES if (path / name).is_file()]
    if there and there != BATCHES:
        absent = ", ".join(name for name in BATCHES if name not in there)
        raise ValueError(f"{path} has {there[0]} but lacks {absent}; want all five, or one file by its name")
    return [path / name for name in there]


def read_cifar(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``(N, 3, 32, 32)``, of one file memory-mapped, and labels uint8 ``(N,)``.

    Raises:
        ValueError: a file doesn't hold whole records, is empty, or has a label above 9.
    """
    batches = [_records(file) for file in files]
    images = [batch["image"] for batch in batches]
    return (
        images[0] if len(images) == 1 else np.concatenate(images),
        np.concatenate([batch["label"] for batch in batches]),
    )


def _records(path: Path) -> np.ndarray:
    with disk.decoding(path, "CIFAR-10 file"):
        with open_file(path) as file:  # refuses what is no regular file
            size = file.seek(0, 2)
        if size == 0 or size % RECORD.itemsize:
            raise ValueError(
                f"it has {size} bytes; want a multiple of {RECORD.itemsize}, a label and an image"
            )
        records = np.memmap(path, RECORD, "r")
        wrong = np.flatnonzero(records["label"] >= NUM_CLASSES)
        if len(wrong):
            found = f"label {records['label'][wrong[0]]} in record {wrong[0]}"
            raise ValueError(f"it has the {found}; want 0..{NUM_CLASSES - 1}")
        return records
