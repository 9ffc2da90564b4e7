"""Video: clips read from files, folders of frames and arrays; written as MP4, GIF and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqfast.data.protocol import Format, Media, Modality
from vqfast.data.video.dataset import Clips
from vqfast.data.video.formats import formats_at, gif_bytes, mp4_bytes, to_frames
from vqfast.data.video.load import load_video
from vqfast.data.video.shown import kept_mask, show_completions, show_items, show_pairs

RATE = 10.0  # frames a second of clips whose files don't say it


@dataclass(frozen=True)
class _VideoModality:
    """Clips of a rate, which their files need."""

    rate: float | None = None
    item = "clip"
    like_run = ("frames", "stride", "size", "channels", "num_actions", "classes")
    load = staticmethod(load_video)
    kept_mask = staticmethod(kept_mask)
    show_items = staticmethod(show_items)
    show_pairs = staticmethod(show_pairs)
    show_completions = staticmethod(show_completions)

    @property
    def formats(self) -> Mapping[str, Format]:
        return formats_at(self.rate or RATE)

    def media(self, item: Tensor) -> list[Media]:
        return [Media("image/gif", gif_bytes(to_frames(item[None])[0], self.rate or RATE))]

    def found(self, findings: Mapping[str, Any]) -> Modality:
        return _VideoModality(findings.get("rate"))


VIDEO: Modality = _VideoModality()

__all__ = ["VIDEO", "Clips", "gif_bytes", "load_video", "mp4_bytes"]
