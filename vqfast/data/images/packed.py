"""Images that aren't files of their own: several lie in one file."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from typing import BinaryIO

import numpy as np

from vqfast.data.images.folder import FolderPixels


class PackedPixels(FolderPixels):
    """``FolderPixels`` whose ``_source`` gives the bytes of an image; see ``Pixels``."""

    def contents(self, numbers: np.ndarray) -> bytes:
        digest = hashlib.sha256(repr((self.mode, self.depth)).encode())
        for name in (self.names[number] for number in numbers):
            with self._source(name) as source:
                data = source.read()
            digest.update(os.fsencode(name) + b"\0%d\n" % len(data) + data)
        return digest.digest()

    @abstractmethod
    def _source(self, name: str) -> BinaryIO:
        """The bytes of an image as a file."""
