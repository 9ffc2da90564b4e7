"""Images: read from folders, files and arrays; written and shown as pictures and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqfast.data.images.dataset import Images
from vqfast.data.images.formats import FORMATS, media
from vqfast.data.images.load import load_images
from vqfast.data.images.mask import kept_mask, show_completions
from vqfast.data.images.sheet import grid, show_pairs
from vqfast.data.protocol import Modality


class _ImageModality:
    item = "image"
    like_run = ("size", "crop", "channels", "depth", "classes")
    formats = FORMATS
    load = staticmethod(load_images)
    kept_mask = staticmethod(kept_mask)
    media = staticmethod(media)
    show_items = staticmethod(grid)
    show_pairs = staticmethod(show_pairs)
    show_completions = staticmethod(show_completions)

    def found(self, findings: Mapping[str, Any]) -> Modality:
        return self


IMAGES: Modality = _ImageModality()

__all__ = ["IMAGES", "Images", "load_images"]
