"""Recordings: read from folders and files; written as WAV and shown as spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqfast.data.audio.dataset import Recordings
from vqfast.data.audio.formats import formats_at
from vqfast.data.audio.load import load_audio
from vqfast.data.audio.recording import wav_bytes
from vqfast.data.audio.spectrogram import kept_mask, show_completions, show_items, show_pairs
from vqfast.data.protocol import Format, Media, Modality

RATE = 16_000  # of recordings whose findings aren't known


@dataclass(frozen=True)
class _AudioModality:
    """Recordings of a rate, which their files need."""

    rate: int | None = None
    item = "recording"
    like_run = ("rate", "classes")
    load = staticmethod(load_audio)
    kept_mask = staticmethod(kept_mask)
    show_items = staticmethod(show_items)
    show_pairs = staticmethod(show_pairs)
    show_completions = staticmethod(show_completions)

    @property
    def formats(self) -> Mapping[str, Format]:
        return formats_at(self.rate or RATE)

    def media(self, item: Tensor) -> list[Media]:
        sound = wav_bytes(item[0].cpu().numpy(), self.rate or RATE)
        return [Media("image/png", show_items(item.unsqueeze(0), columns=1)), Media("audio/wav", sound)]

    def found(self, findings: Mapping[str, Any]) -> Modality:
        return _AudioModality(findings.get("rate"))


AUDIO: Modality = _AudioModality()

__all__ = ["AUDIO", "Recordings", "load_audio", "wav_bytes"]
