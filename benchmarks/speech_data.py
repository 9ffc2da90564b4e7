"""Recordings as spectrograms, with the phone of each code, for the suite ``speech``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.core import AbsentError
from vqfast.data import Recordings, load_audio
from vqfast.data.audio.phones import SUFFIXES, phone_at, read_phones
from vqfast.models.speech_encoder import LogMel

RATE, HOP, FRAMES, MELS = 16_000, 160, 4, 40  # a code stands for four windows
CODE_SAMPLES = HOP * FRAMES
HELD_OUT = 0.2
SILENCES = {"#", "", "sil", "SIL", "sp", "pau", "_"}
SMALLEST_SCALE = 0.05  # of a band that is the same in all windows


class Utterances(NamedTuple):
    """Recordings as spectrograms.

    Attributes:
        mels: of each, ``(MELS, T)``, T a multiple of ``FRAMES``, normalised by speaker.
        waves: of each, ``(T * HOP,)``.
        phones: of each, the phone in the middle of each code, ``T / FRAMES``; none without a label file.
        speakers: int64 ``(N,)``.
        names: of the speakers.
        means, scales: of the bands by speaker, ``(speakers, MELS, 1)``.
    """

    mels: list[Tensor]
    waves: list[Tensor]
    phones: list[list[str]]
    speakers: Tensor
    names: list[str]
    means: Tensor
    scales: Tensor

    def raw(self, number: int) -> Tensor:
        """A spectrogram before it was normalised."""
        speaker = int(self.speakers[number])
        return self.mels[number] * self.scales[speaker] + self.means[speaker]


def read_voices(folder: Path | None) -> Recordings:
    """The recordings of the folder, which must have speakers, and labels beside some recordings."""
    if folder is None:
        raise AbsentError("needs --voices, a folder of speakers with label files beside the recordings")
    recordings = load_audio(folder, rate=RATE)
    labelled = any(label_file(folder / name) for name in recordings.names)
    if not labelled or recordings.labels is None:
        raise AbsentError(f"{folder} has no speakers, or no label file beside any recording")
    return recordings


def label_file(recording: Path) -> Path | None:
    """The file with the phones of a recording."""
    found = (recording.with_suffix(suffix) for suffix in SUFFIXES)
    return next((file for file in found if file.is_file()), None)


def both_parts(recordings: Recordings, folder: Path) -> tuple[Utterances, Utterances]:
    """The recordings to learn from and those held out, normalised by the former.

    The mean and the standard deviation of each band become 0 and 1 for each speaker: the paper gives the
    speaker too.
    """
    train, held_out = recordings.split(HELD_OUT, seed=0)
    speakers = list(recordings.speakers or [])
    of_train, of_held_out = raw_utterances(train, folder), raw_utterances(held_out, folder)
    assert train.labels is not None
    means, scales = [], []
    for speaker in range(len(speakers)):
        own = [mels for mels, label in zip(of_train[0], train.labels, strict=True) if label == speaker]
        joined = torch.cat(own, 1)
        means.append(joined.mean(1, keepdim=True))
        scales.append(joined.std(1, keepdim=True).clamp(min=SMALLEST_SCALE))

    def normalised(part: Recordings, found: tuple[Any, ...]) -> Utterances:
        mels, waves, phones = found
        assert part.labels is not None
        mels = [(m - means[s]) / scales[s] for m, s in zip(mels, part.labels, strict=True)]
        labels = torch.from_numpy(part.labels)
        return Utterances(mels, waves, phones, labels, speakers, torch.stack(means), torch.stack(scales))

    return normalised(train, of_train), normalised(held_out, of_held_out)


def normalised_alike(train: Utterances, held_out: Utterances) -> tuple[Utterances, Utterances]:
    """Both parts normalised over all speakers together: for a model that isn't told who speaks."""
    joined = torch.cat([train.raw(number) for number in range(len(train.mels))], 1)
    mean, scale = joined.mean(1, keepdim=True), joined.std(1, keepdim=True).clamp(min=SMALLEST_SCALE)
    count = len(train.names)

    def alike(part: Utterances) -> Utterances:
        mels = [(part.raw(number) - mean) / scale for number in range(len(part.mels))]
        return part._replace(
            mels=mels, means=torch.stack([mean] * count), scales=torch.stack([scale] * count)
        )

    return alike(train), alike(held_out)


def raw_utterances(part: Recordings, folder: Path) -> tuple[list[Tensor], list[Tensor], list[list[str]]]:
    """Spectrograms, waveforms and phones; recordings shorter than a code have none."""
    log_mel = LogMel(MELS, HOP, RATE)
    mels, waves = [], []
    phones: list[list[str]] = []
    for number, (name, length) in enumerate(zip(part.names, part.lengths.tolist(), strict=True)):
        codes = max(1, length // CODE_SAMPLES)
        wave = part.batch([number])[:, :, : codes * CODE_SAMPLES]
        wave = torch.nn.functional.pad(wave, (0, codes * CODE_SAMPLES - wave.shape[2]))
        mels.append(log_mel(wave)[0])
        waves.append(wave[0, 0])
        file = label_file(folder / name)
        if file is None:
            phones.append([])
            continue
        labels = read_phones(file)
        middles = ((code + 0.5) * CODE_SAMPLES / RATE for code in range(codes))
        found = [phone_at(labels, seconds) or "" for seconds in middles]
        phones.append(["" if phone in SILENCES else phone for phone in found])
    return mels, waves, phones


def first_code(codes: int, wanted: int, rng: np.random.Generator) -> int:
    """Where a random part of ``wanted`` codes begins in a recording of so many."""
    return int(rng.integers(max(1, codes - wanted + 1)))


def part(x: Tensor, first: int, codes: int, stride: int) -> Tensor:
    """So many codes of ``x (..., T)``, which has ``stride`` steps for each; a short ``x`` is repeated."""
    x = torch.cat([x] * -(-codes * stride // x.shape[-1]), -1)
    return x[..., first * stride : (first + codes) * stride]


def parts_of(rng: np.random.Generator, batch: int, codes: int, *rows: list[Tensor]) -> tuple[Tensor, ...]:
    """Random parts of so many codes of a batch of recordings, the same of each of ``rows``, ``(..., T)``."""
    numbers = rng.integers(len(rows[0]), size=batch)
    places = [(n, first_code(rows[0][n].shape[-1], codes, rng)) for n in numbers]
    return tuple(torch.stack([part(x[n], first, codes, 1) for n, first in places]) for x in rows)
