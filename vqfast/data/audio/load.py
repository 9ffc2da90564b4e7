"""Opens a set of recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vqfast.checks import check_integer, check_number
from vqfast.data import disk
from vqfast.data.audio.dataset import Recordings
from vqfast.data.audio.folder import RecordingFiles


def load_audio(
    data: str | Path,
    *,
    rate: int | None = None,
    crop: float = 0.5,
    depth: None = None,
    skip_bad: bool | Mapping[str, str] = False,
    classes: Sequence[str] | None = None,
) -> Recordings:
    """Opens a set of recordings; they are read when they are needed.

    ``data`` is a recording, or a folder that is searched recursively, links followed, in the order of the
    relative names. Files are used whose suffix is that of a format that libsndfile reads: WAV, FLAC, Ogg,
    MP3, AIFF and others, of any depth, rate, length and number of channels, which are averaged.

    If the recordings stand in sub-folders, those are the speakers, numbered in sorted order: the first
    folders below the ones that all recordings are in, so that VCTK's ``wav48/p225`` is speaker ``p225``. In
    LibriSpeech's layout, ``84/121123/84-121123-0000.flac``, the speaker is ``84``, in all its splits.

    This takes the packages soundfile and soxr: ``pip install 'vqfast[audio]'``.

    Args:
        data: see above.
        rate: samples a second that the recordings are resampled to; None takes the lowest rate among them.
        crop: seconds of a recording that a step of training takes, at a random place.
        depth: None, as for all kinds of data whose files need no such option.
        skip_bad: True leaves out files that can't be read, which takes reading all of them. A mapping leaves
            out the files that are its keys, as ``findings["bad"]`` named them before.
        classes: the names of all speakers, in the order of their labels. Where others are found, there are no
            labels.

    Raises:
        FileNotFoundError: a path isn't there.
        ModuleNotFoundError: soundfile or soxr is missing.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or there is no recording.
        Unreadable: recordings can't be read, or have no samples; it is a ValueError.

    ``Recordings`` has an example.
    """
    check_integer("rate", rate, 1, 768_000, optional=True)
    check_number("crop", crop, above=0)
    if depth is not None:
        raise ValueError(f"depth is {depth}; want None: recordings of every depth are read as what they are")
    files = RecordingFiles(disk.existing_path("data", data), rate, skip_bad, classes)
    return Recordings(files, str(data), crop)
