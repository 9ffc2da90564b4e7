"""Voices made up for tests: a vowel is two formants, a speaker is a pitch."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

RATE = 4000
VOWELS = {"a": (700, 1200), "i": (300, 1800), "u": (350, 700), "#": (0, 0)}  # hertz; # is silence
SPEAKERS = {"anna": 210, "ben": 110}
VOWEL_SAMPLES = 400


def say(text: str, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """The vowels of a text, 0.1 s each: pulses at the pitch, through two resonators."""
    length = len(text) * VOWEL_SAMPLES
    phase = np.cumsum(np.full(length, pitch / RATE)) + rng.random()
    pulses = np.diff(np.floor(phase), prepend=np.floor(phase[0])) + 0.005 * rng.standard_normal(length)
    sound = np.zeros(length)
    for place, vowel in enumerate(text):
        part = slice(place * VOWEL_SAMPLES, (place + 1) * VOWEL_SAMPLES)
        sound[part] = sum(resonance(pulses[part], formant) for formant in VOWELS[vowel] if formant)
    return 0.5 * sound / max(1e-9, np.abs(sound).max())


def resonance(x: np.ndarray, formant: float, decay: float = 0.93) -> np.ndarray:
    times = np.arange(120)
    return np.convolve(x, decay**times * np.cos(2 * np.pi * formant / RATE * times))[: len(x)]


def write_voices(folder: Path, recordings: int = 8, vowels: int = 5) -> dict[str, str]:
    """Writes recordings of each speaker, and gives the text of each by its name."""
    texts = {}
    for number, (speaker, pitch) in enumerate(SPEAKERS.items()):
        rng = np.random.default_rng(number)
        (folder / speaker).mkdir(parents=True)
        for i in range(recordings):
            name = f"{speaker}/{i}.wav"
            texts[name] = "".join(rng.choice(list(VOWELS), vowels - i % 2))
            (folder / name).write_bytes(as_wav(say(texts[name], pitch, rng)))
    return texts


def as_wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
