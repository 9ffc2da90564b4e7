"""Images of a data set of the library ``datasets``, as its ``save_to_disk`` writes it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqfast.data import disk
from vqfast.data.images.packed import PackedPixels

SPLIT = "train"  # the one that is read of several


class DatasetPixels(PackedPixels):
    """The images of a saved data set; see ``Pixels`` and ``FolderPixels``.

    They are in the only column of images, or in that called ``image``. The labels are the column of classes,
    or that of integers called ``label``.

    Args:
        root: the folder of ``save_to_disk``. Of several splits the one called train is read.
        size, depth, skip_bad: see ``FolderPixels``.
        labelled: whether labels come from elsewhere.

    Raises:
        Unreadable: images can't be read.
        ValueError: there is no such column or split, the images have unequal sizes, or a label is missing.
    """

    def __init__(
        self,
        root: Path,
        size: int | None,
        depth: int | None,
        skip_bad: bool | Mapping[str, str],
        labelled: bool,
    ) -> None:
        super().__init__(root, size, depth, skip_bad, labelled=True)
        if not labelled and (column := self._label_column()):
            labels = self.rows[column]
            self.labels = np.array([-1 if label is None else label for label in labels])[self.used]

    def stamp(self) -> bytes:
        return disk.stamp_of(disk.files_under(self.root)[0])

    def _found(self, root: Path) -> disk.Found:
        try:
            import datasets
        except ImportError:
            raise ValueError(f"{root} is a saved data set; want the package datasets installed") from None
        with disk.decoding(root, "data set"):
            found = datasets.load_from_disk(str(root))
            if isinstance(found, datasets.DatasetDict):
                splits = sorted(map(str, found))
                if SPLIT not in splits and len(splits) > 1:
                    raise ValueError(f"it has the splits {', '.join(splits)}; want one called {SPLIT}")
                found = found[SPLIT if SPLIT in splits else splits[0]]
            images = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
            if len(images) > 1 and "image" in images:
                images = ["image"]
            if len(images) != 1:
                raise ValueError(f"it has the columns of images {images}; want one, or one called image")
            self.column = images[0]
            self.rows: Any = found.cast_column(self.column, datasets.Image(decode=False))
        self.root = root
        return {f"{number:09d}": root.stat() for number in range(len(found))}, {}, {}

    def _source(self, name: str) -> BinaryIO:
        image = self.rows[int(name)][self.column]
        if image is None or image["bytes"] is None:  # a path of the machine that it was made on
            raise ValueError("it isn't in the data set's files; want its bytes there")
        return io.BytesIO(image["bytes"])

    def _counts(self, name: str) -> bool:
        return True

    def _label_column(self) -> str | None:
        import datasets

        kinds = self.rows.features
        classes = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        whole = [
            name for name, kind in kinds.items() if getattr(kind, "dtype", "").startswith(("int", "uint"))
        ]
        found = classes if len(classes) == 1 else [name for name in whole if name == "label"]
        return found[0] if found else None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one of ``save_to_disk``."""
    one = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return one or (path / "dataset_dict.json").is_file()
