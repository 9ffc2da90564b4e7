"""Recordings as files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch import Tensor

from vqfast.data.audio.dataset import Recordings
from vqfast.data.audio.recording import wav_bytes
from vqfast.data.protocol import Format, Piece
from vqfast.files import HiddenFile

PAUSE = 0.5


def formats_at(rate: int) -> dict[str, Format]:
    """The formats of recordings of a rate; files are named by the number of their first recording."""

    def waves(batches: Iterator[Iterable[Tensor]]) -> Iterator[bytes]:
        return (wav_bytes(item[0].numpy(), rate) for batch in batches for item in batch)

    def streamed(folder: Path, lengths: Sequence[int], pieces: Iterator[Piece]) -> Iterator[HiddenFile]:
        return write_waves(folder, lengths, pieces, rate)

    return {
        "wav": Format(lambda numbers: [f"{number:07d}.wav" for number in numbers], waves, streamed),
        "npy": Format(lambda numbers: [f"{numbers.start:07d}.npy"], _array),
    }


def write_waves(
    folder: Path, lengths: Sequence[int], pieces: Iterable[Piece], rate: int
) -> Iterator[HiddenFile]:
    """WAV files of 16 bits that are written piece by piece; see ``Format.streamed``.

    The bytes are those of ``wav_bytes``.
    """
    import soundfile

    with ExitStack() as stack:
        files = [HiddenFile(folder) for _ in lengths]
        for file in files:
            stack.callback(file.remove)
        options = {"samplerate": rate, "channels": 1, "format": "WAV", "subtype": "PCM_16"}
        sounds = [soundfile.SoundFile(file.opened, "w", **options) for file in files]
        for sound in sounds:
            stack.callback(sound.close)  # before its file is
        for places, first, waves in pieces:
            for place, wave in zip(places, waves, strict=True):
                sounds[place].write(wave[0, : max(0, lengths[place] - first)].clamp(-1, 1).numpy())
        for sound in sounds:
            sound.close()
        yield from files


def sound_of_pairs(dataset: Recordings, numbers: range, reconstructions: Tensor) -> bytes:
    """A WAV file of recordings: each before its reconstruction, with ``PAUSE`` seconds behind each sound.

    Args:
        reconstructions: floats ``(n, 1, T)``, T at least the length of each recording.
    """
    pause, sounds = np.zeros(round(PAUSE * dataset.rate), np.float32), list[np.ndarray]()
    for number, reconstruction in zip(numbers, reconstructions, strict=True):
        original = dataset.recording(number)[0, 0]
        sounds += [original.numpy(), pause, reconstruction[0, : len(original)].float().numpy(), pause]
    return wav_bytes(np.concatenate(sounds), dataset.rate)


def _array(batches: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([batch.float().numpy() for batch in batches]))
    yield buffer.getvalue()
