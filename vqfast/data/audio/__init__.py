"""Recordings: read from folders and files; written as WAV and shown as spectrograms."""

from vqfast.data.audio.dataset import Recordings
from vqfast.data.audio.load import load_audio
from vqfast.data.audio.recording import wav_bytes

__all__ = ["Recordings", "load_audio", "wav_bytes"]
