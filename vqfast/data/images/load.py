"""Opens a set of images, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vqfast.checks import check_flags, check_integer
from vqfast.data import disk
from vqfast.data.images.arrays import ArrayPixels, read_idx, read_idx_pair, read_npy, read_npz
from vqfast.data.images.cifar import cifar_files, read_cifar
from vqfast.data.images.dataset import Images
from vqfast.data.images.folder import FolderPixels
from vqfast.data.images.picture import SUFFIXES, open_picture
from vqfast.data.images.pixels import squares
from vqfast.data.images.saved_dataset import DatasetPixels, is_saved_dataset
from vqfast.data.images.shards import ShardPixels, shard_files


def load_images(
    data: str | Path,
    *,
    labels: str | Path | None = None,
    size: int | None = None,
    crop: int | None = None,
    flip: bool = False,
    channels: int | None = None,
    depth: int | None = None,
    skip_bad: bool | Mapping[str, str] = False,
    classes: Sequence[str] | None = None,
) -> Images:
    """Opens a set of images; they are read when they are needed.

    ``data`` is one of:

    - ``"digits"``: scikit-learn's 1797 handwritten digits, bright on dark, enlarged from 8x8 to 32x32.
    - A folder, searched recursively, links followed, in the order of the relative names. Files are used that
      Pillow knows by their content as PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, JPEG 2000, AVIF or QOI, whatever
      they are called; others are left out, as are hidden ones. ``findings`` counts what is left out.
      Where the first-level folders with images are splits by their names (train, val, valid, test, dev and
      so on, maybe with a number), only the one called train or training is read.
      If the images stand in sub-folders, the first-level ones are the classes, numbered in sorted order, and
      images beside several such folders are left out as long as they are fewer; else there are no classes.
      The images are grey only if all files are; alpha is dropped, EXIF's rotation is applied, an animation
      gives its first frame. Channels of more than 8 bits are integers of ``depth`` bits.
    - One image file.
    - A ``.tar`` file of images, or a folder of them, as WebDataset keeps them. Where each image has a member
      with its name and the suffix ``.cls``, the integers in these are the labels.
    - A ``.npy`` file, which is memory-mapped, or a ``.npz`` file with the images under images, x, data,
      x_train or arr_0 (or in its only array of rank 3 or more) and any labels under labels, y or y_train.
      Shapes are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with C 1, 3 or 4 (alpha, which is
      dropped); where the last axis is 1 or 3 it is read as C, whatever the second is. Values are uint8; other
      integers, of ``depth`` bits; or floats in [0, 1], or in 0..255 where more than half of the positive ones
      exceed 1 and the largest exceeds 127.
    - A folder that ``save_to_disk`` of the library ``datasets`` wrote: the column of images, the column of
      classes as labels, and of several splits the one called train.
    - An IDX file, gzipped or not, as MNIST comes; its labels beside it under the name that MNIST gives them.
    - CIFAR-10's binary files: the folder ``cifar-10-batches-bin``, of which the five batches of training
      images are read, or one file, such as its ``test_batch.bin``.

    Args:
        data: see above.
        labels: a ``.npy`` or IDX file of N integers, 0 or more, in place of the labels above; it also counts
            the images that ``skip_bad`` leaves out.
        size: resizes the shorter side to so many pixels and cuts out the central square.
        crop: cuts out the central square of so many pixels; ``varied``, which training takes, cuts out a
            random one.
        flip: whether ``varied`` mirrors half of the images.
        channels: 1 (grey) or 3 (RGB) converts.
        depth: bits of a channel, 1..63; None takes as many as the largest value of all needs, so that 12-bit
            data in 16-bit files becomes 0..1.
        skip_bad: True leaves out image files that can't be read, which takes reading all of them. A mapping
            leaves out the files that are its keys, as ``findings["bad"]`` named them before.
        classes: the names of all classes, in the order of their labels. Where other folders are found, there
            are no labels.

    Raises:
        FileNotFoundError: a path isn't there.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or a file is damaged or not of these kinds. Files of a folder
            and memory-mapped arrays are fully checked only when ``batch`` reads them.
        Unreadable: image files can't be read; it is a ValueError.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.zeros((5, 16, 24, 3), np.uint8))
    ...     images = load_images(f"{folder}/x.npy", size=8, channels=1)
    >>> len(images), images.shape
    (5, (1, 8, 8))
    """
    check_integer("size", size, 1, 2**31 - 1, optional=True)
    check_flags(flip=flip)
    check_integer("depth", depth, 1, 63, optional=True)
    check_integer("channels", channels, optional=True)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; want 1 or 3")
    found: np.ndarray | None
    pixels: ArrayPixels | FolderPixels
    if isinstance(data, str) and data == "digits":
        array, found = _read_digits(size or 32)
        pixels = ArrayPixels(array, "digits", [], None, None)
    elif (path := disk.existing_path("data", data)).suffix.lower() in (".npy", ".npz") and path.is_file():
        array, (found,) = read_npz(path) if path.suffix.lower() == ".npz" else (read_npy(path), [None])
        pixels = ArrayPixels(array, str(path), [path], size, depth)
    elif cifar := cifar_files(path):
        array, found = read_cifar(cifar)
        pixels = ArrayPixels(array, str(path), cifar, size, depth)
    elif shard_files(path):
        pixels = ShardPixels(path, size, depth, skip_bad, labels is not None)
        found = pixels.labels
    elif is_saved_dataset(path):
        pixels = DatasetPixels(path, size, depth, skip_bad, labels is not None)
        found = pixels.labels
    elif path.is_dir() or _is_image(path):
        pixels = FolderPixels(path, size, depth, skip_bad, labels is not None, classes)
        found = pixels.labels
    else:
        array, found = read_idx_pair(path)
        pixels = ArrayPixels(array, str(path), [path], size, depth)
    if labels is not None:
        path = disk.existing_path("labels", labels)
        found = read_npy(path) if path.suffix.lower() == ".npy" else read_idx(path, rank=1)
        found = _checked_labels(found, len(pixels) + len(pixels.bad), str(labels))[pixels.used]
    elif found is not None:
        found = _checked_labels(found, len(pixels), str(data))
    return Images(pixels, str(data), found, channels, crop, flip)


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its name or content."""
    try:
        with open_picture(path):
            return True
    except Exception:  # a decoder raises nearly anything on bad bytes
        return path.suffix.lower() in SUFFIXES


def _read_digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    return squares(np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), size), labels


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} has labels of shape {labels.shape}; want ({count},), one for each image")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} has labels of dtype {labels.dtype}; want integers")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{name} has the label {labels.min()}; want 0 or more")
    return labels
