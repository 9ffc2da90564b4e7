"""One recording: what its file says of itself, and its samples at another rate."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vqfast.files import open_file

if TYPE_CHECKING:
    from soundfile import SoundFile

SUFFIXES = {
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".w64", ".rf64", ".sph", ".nist"),
}
SLACK = 2304  # samples that a header may say too many: MP3's come in frames of 1152
MARGIN = 2048  # samples read on either side of a part, so that resampling it gives what the whole gives
# what libsndfile notes of WAV, AIFF and AU files with fewer bytes of samples than their headers say
CUT = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
UNKNOWN = 0x7FFFF000  # bytes; headers that were written before the samples were known say this or more
EXTRA = "reading audio takes soundfile and soxr: pip install 'vqfast[audio]'"


class RecordingFacts(NamedTuple):
    """What the header of a file says.

    Args:
        rate: samples a second.
        num_samples: of each channel; MP3 and Ogg files may turn out to have fewer.
    """

    rate: int
    num_samples: int


def recording_facts(file: Path) -> RecordingFacts:
    """Facts about a file, from its header.

    Raises:
        Exception: nearly any, if the file can't be read.
        ValueError: it has no samples, or the file ends before its header says.
    """
    with _opened(file) as sound:
        if not sound.frames:
            raise ValueError("it has no samples")
        said = CUT.search(sound.extra_info)
        if said and int(said[2]) < int(said[1]) < UNKNOWN:
            missing = sound.frames / sound.samplerate * (int(said[1]) / max(1, int(said[2])) - 1)
            raise ValueError(f"it has {missing:.2f} seconds less than its header says")
        return RecordingFacts(sound.samplerate, sound.frames)


def length_at(facts: RecordingFacts, rate: int) -> int:
    """How many samples a recording has at another rate; at least one."""
    return max(1, -(-facts.num_samples * rate // facts.rate))


def read_recording(file: Path, rate: int, start: int = 0, length: int | None = None) -> np.ndarray:
    """The samples ``start .. start + length - 1`` of a recording at a rate; by default all.

    Channels are averaged, so that mono files of every depth and stereo ones become floats alike.

    Returns:
        float32 ``(length,)`` in [-1, 1], zero behind the end of the recording; floats outside are clamped.

    Raises:
        Exception: nearly any, if the file can't be read.
        ValueError: a sample is NaN or infinite, or the file ends before its header says.
    """
    with _opened(file) as sound:
        facts = RecordingFacts(sound.samplerate, sound.frames)
        length = length_at(facts, rate) - start if length is None else length
        common = gcd(facts.rate, rate)
        there, here = facts.rate // common, rate // common  # so many samples last as long
        margin = -(-MARGIN // here)
        first = max(0, start // here - margin)
        sound.seek(min(first * there, sound.frames))
        wanted = (-(-(start + length) // here) + margin - first) * there
        samples = sound.read(wanted, "float32", always_2d=True)
    wanted = min(wanted, facts.num_samples - first * there)
    if len(samples) < wanted - SLACK or (not len(samples) and start < length_at(facts, rate)):
        missing = (wanted - len(samples)) / facts.rate
        raise ValueError(f"it has {missing:.2f} seconds less than its header says")
    if not np.isfinite(samples).all():
        raise ValueError("it has a sample that is NaN or infinite")
    mono = samples.mean(1, dtype=np.float32)
    if facts.rate != rate and len(mono):
        import soxr

        mono = soxr.resample(mono, facts.rate, rate)
    part = mono[start - first * here :][:length].clip(-1, 1)
    return np.pad(part, (0, length - len(part)))


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """Floats ``(T,)`` in [-1, 1] as a WAV file of 16 bits."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@contextmanager
def _opened(file: Path) -> Iterator[SoundFile]:
    try:
        import soundfile
        import soxr  # noqa: F401  # asked for here, so that it isn't missed in the middle of the work
    except ImportError:
        raise ModuleNotFoundError(EXTRA) from None
    try:
        with open_file(file) as opened, soundfile.SoundFile(opened) as sound:
            yield sound
    except soundfile.LibsndfileError as error:
        raise ValueError(error.error_string) from error
