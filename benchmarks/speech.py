"""The speech experiments of the VQ-VAE paper (section 4.3): what the codes of recordings tell.

The encoder of ``mel-speech`` learns with its second, fast decoder alone, which tells the log-mel spectrogram
from 25 codes a second and the speaker. Phones and speakers are then read from the codes of held-out
recordings, and compared with k-means on the same spectrogram at the same rate and size. The data is a folder
of speakers with a label file beside each recording.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.core import AbsentError, Case
from vqfast.data import Recordings, load_audio
from vqfast.data.audio.phones import SUFFIXES, phone_at, read_phones
from vqfast.models import SpeechVQVAE
from vqfast.nn.kmeans import kmeans

CASES: list[Case] = []  # nothing is timed
RATE, HOP, FRAMES = 16_000, 160, 4  # a code stands for four windows
K = 128
HELD_OUT = 0.2
SILENCES = {"#", "", "sil", "sp", "pau", "_"}
MODEL: dict[str, Any] = {
    "encoder_strides": (HOP, 2, 2),
    "num_mels": 40,
    "mel_weight": 10.0,
    "hidden_channels": 128,
    "num_residual_blocks": 1,
    "num_embeddings": K,
    "decay": 0.95,
    "wavenet_layers": 1,  # isn't trained here
    "rate": RATE,
}
QUICK, FULL = (300, 1), (3000, 3)  # steps, seeds
BATCH, WINDOWS, LR = 32, 128, 1e-3
SEGMENT = 25  # codes from which a speaker is read: a second


class Utterances(NamedTuple):
    """Recordings as spectrograms.

    Attributes:
        mels: of each, ``(num_mels, T)``, T a multiple of ``FRAMES``.
        phones: of each, the phone in the middle of each code, ``T / FRAMES``.
        speakers: int64 ``(N,)``.
    """

    mels: list[Tensor]
    phones: list[list[str]]
    speakers: Tensor


def findings(*, full: bool, voices: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of phones and speakers read from codes.

    Args:
        full: trains for 3000 steps and three seeds, some two minutes for each on two cores.
        voices: a folder of speakers, with label files beside the recordings.
    """
    steps, seeds = FULL if full else QUICK
    try:
        recordings = read_voices(voices)
    except AbsentError as error:
        print(f"speech: {error}", flush=True)
        return {}
    train, held_out = (utterances(part, voices) for part in recordings.split(HELD_OUT, seed=0))
    phones: dict[str, list[float]] = {}
    speakers: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, told in (("codes, speaker told", True), ("codes, speaker not told", False)):
            codes = learned_codes(train, held_out, steps, seed, recordings.num_classes if told else None)
            phones.setdefault(name, []).append(phones_right(codes, train, held_out))
            speakers.setdefault(name, []).append(speakers_right(codes, train, held_out))
            print(
                f"speech: seed {seed}, {name}: {phones[name][-1]:.1%}, {speakers[name][-1]:.1%}", flush=True
            )
        codes = clustered(train, held_out, seed)
        phones.setdefault("k-means of the spectrogram", []).append(phones_right(codes, train, held_out))
        speakers.setdefault("k-means of the spectrogram", []).append(speakers_right(codes, train, held_out))
        rng = np.random.default_rng(seed)
        seen, unseen = ([rng.integers(K, size=len(row)) for row in u.phones] for u in (train, held_out))
        phones.setdefault("random codes", []).append(phones_right((seen, unseen), train, held_out))
    counts = Counter(phone for row in train.phones for phone in row)
    most_common = counts.most_common(1)[0][0]
    row = [phone == most_common for phones_of_one in held_out.phones for phone in phones_of_one]
    phones["the most common phone"] = [float(np.mean(row))]
    seconds = sum(len(row) for row in train.phones) / SEGMENT
    about = (
        f"{len(counts)} phones, {recordings.num_classes} speakers, {seconds / 60:.0f} minutes to learn from"
    )
    return {
        f"Phones from {K} codes, {RATE // (HOP * FRAMES)} a second, held out; {about}": as_table(
            "phones", phones
        ),
        f"Speakers from the codes of a second; chance {1 / len(set(train.speakers.tolist())):.0%}": as_table(
            "speakers", speakers
        ),
    }


def as_table(column: str, figures: dict[str, list[float]]) -> dict[str, dict[str, str]]:
    """The mean of each line over the seeds, and its range."""
    return {
        name: {column: f"{np.mean(values):.1%}", "range": f"{min(values):.1%} to {max(values):.1%}"}
        for name, values in figures.items()
    }


def read_voices(folder: Path | None) -> Recordings:
    """The recordings of the folder, which must have speakers and labels."""
    if folder is None:
        raise AbsentError("needs --voices, a folder of speakers with label files beside the recordings")
    recordings = load_audio(folder, rate=RATE)
    missing = [name for name in recordings.names if label_file(folder / name) is None]
    if missing or recordings.labels is None:
        raise AbsentError(f"{folder} has no speakers, or no labels of {', '.join(missing[:3])}")
    return recordings


def label_file(recording: Path) -> Path | None:
    """The file with the phones of a recording."""
    found = (recording.with_suffix(suffix) for suffix in SUFFIXES)
    return next((file for file in found if file.is_file()), None)


def utterances(part: Recordings, folder: Path | None) -> Utterances:
    """A part of the recordings as spectrograms, with the phones of each code."""
    assert folder is not None and part.labels is not None
    log_mel = SpeechVQVAE(**MODEL).encoder[0]
    mels, phones = [], []
    for number, (name, length) in enumerate(zip(part.names, part.lengths.tolist(), strict=True)):
        codes = length // (HOP * FRAMES)
        wave = part.batch([number])[:, :, : codes * HOP * FRAMES]
        mels.append(log_mel(wave)[0])
        file = label_file(folder / name)
        assert file is not None
        labels = read_phones(file)
        middles = ((code + 0.5) * HOP * FRAMES / RATE for code in range(codes))
        found = [phone_at(labels, seconds) or "" for seconds in middles]
        phones.append(["" if phone in SILENCES else phone for phone in found])
    return Utterances(mels, phones, torch.from_numpy(part.labels))


Codes = tuple[list[np.ndarray], list[np.ndarray]]  # of the training recordings, of the others


def learned_codes(
    train: Utterances, held_out: Utterances, steps: int, seed: int, num_classes: int | None
) -> Codes:
    """The codes of a model whose encoder learned with the second decoder."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SpeechVQVAE(**MODEL, num_classes=num_classes)
    encoder, decoder = model.encoder[1:], model.mel_decoder
    assert decoder is not None
    parameters = [*encoder.parameters(), *model.vq.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        numbers = rng.integers(len(train.mels), size=BATCH)
        mels = torch.stack([window(train.mels[number], rng) for number in numbers])
        quantized, _, loss = model.vq(encoder(mels))
        told = None if num_classes is None else train.speakers[numbers]
        error = decoder.error(quantized, told, mels, None)
        optimizer.zero_grad()
        (MODEL["mel_weight"] * error + loss).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        parts = [
            [model.vq.encode(encoder(mels[None]))[0].numpy() for mels in part.mels]
            for part in (train, held_out)
        ]
    return parts[0], parts[1]


def window(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """``WINDOWS`` windows of a spectrogram, from the beginning of a code on; what is missing repeats it."""
    mels = mels.repeat(1, -(-WINDOWS // mels.shape[1]))
    first = FRAMES * int(rng.integers((mels.shape[1] - WINDOWS) // FRAMES + 1))
    return mels[:, first : first + WINDOWS]


def clustered(train: Utterances, held_out: Utterances, seed: int) -> Codes:
    """The codes of k-means on the windows of each code together."""

    def vectors(mels: Tensor) -> Tensor:
        stacked: Tensor = mels.unflatten(1, [-1, FRAMES]).permute(1, 2, 0).flatten(1)
        return stacked

    centres = kmeans(torch.cat([vectors(mels) for mels in train.mels]), K, seed=seed)
    parts = [
        [torch.cdist(vectors(mels), centres).argmin(1).numpy() for mels in part.mels]
        for part in (train, held_out)
    ]
    return parts[0], parts[1]


def phones_right(codes: Codes, train: Utterances, held_out: Utterances) -> float:
    """The share of held-out codes whose phone is the one that their code goes with most in training."""
    names = sorted({phone for row in train.phones for phone in row})
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((K, len(names)))
    for row, phones in zip(codes[0], train.phones, strict=True):
        np.add.at(counts, (row, np.array([number[phone] for phone in phones])), 1)
    told = counts.argmax(1)
    right = [
        told[code] == number.get(phone, -1)
        for row, phones in zip(codes[1], held_out.phones, strict=True)
        for code, phone in zip(row, phones, strict=True)
    ]
    return float(np.mean(right))


def speakers_right(codes: Codes, train: Utterances, held_out: Utterances) -> float:
    """The share of held-out seconds whose speaker is the likeliest by how often each has the codes."""
    counts = np.ones((int(train.speakers.max()) + 1, K))
    for row, speaker in zip(codes[0], train.speakers.tolist(), strict=True):
        counts[speaker] += np.bincount(row, minlength=K)
    log_p = np.log(counts / counts.sum(1, keepdims=True))
    right = [
        log_p[:, row[first : first + SEGMENT]].sum(1).argmax() == speaker
        for row, speaker in zip(codes[1], held_out.speakers.tolist(), strict=True)
        for first in range(0, len(row) - SEGMENT + 1, SEGMENT)
    ]
    return float(np.mean(right))
