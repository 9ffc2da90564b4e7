"""Recordings under a folder: which are used, which are left out and why, and who speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os.path import commonpath
from pathlib import Path, PurePosixPath

import numpy as np

from vqfast.data import disk
from vqfast.data.audio.recording import (
    SUFFIXES,
    RecordingFacts,
    length_at,
    read_recording,
    recording_facts,
)

LIBRISPEECH = re.compile(r"(?:.*/)?(\d+)/(\d+)/\1-\2-\d+\.\w+")  # speaker/chapter/speaker-chapter-number


class RecordingFiles:
    """Recordings under a folder, or one recording; see ``Files``.

    Args:
        root: the folder or the file.
        rate: samples a second that all recordings get; None takes the lowest rate of all.
        skip_bad: whether to leave out files that can't be read, which takes reading all of them; or the names
            of the bad files that were found before, each with the reason.
        speakers: the names of the speakers, in the order of their labels; None takes the folders found. Where
            others are found, they are in ``no_classes`` and there are no labels.

    Attributes:
        rate: samples a second.
        lengths: int64 ``(N,)``, samples of each recording at that rate.

    Raises:
        Unreadable: files can't be read.
        ValueError: there is no recording.
    """

    def __init__(
        self,
        root: Path,
        rate: int | None,
        skip_bad: bool | Mapping[str, str],
        speakers: Sequence[str] | None = None,
    ) -> None:
        self.skippable = skip_bad is False
        self.left_out: disk.LeftOut = {}
        failed: dict[str, str] = {}
        if root.is_file():
            self.root, files = root.parent, {root.name: root.stat()}
        else:
            self.root = root
            files, self.left_out, failed = disk.files_under(root)
        known = dict(skip_bad) if isinstance(skip_bad, Mapping) else {}
        failed = {name: why for name, why in failed.items() if name not in known}
        facts: dict[str, RecordingFacts] = {}
        for name in files:
            if name in known:
                continue
            if len(files) > 1 and not _is_recording_name(name):
                self.left_out.setdefault("without the suffix of a recording", []).append(name)
                continue
            try:
                facts[name] = recording_facts(self.root / name)
                if skip_bad is True:
                    read_recording(self.root / name, facts[name].rate)
            except (MemoryError, ModuleNotFoundError):  # the file isn't to blame
                raise
            except Exception as error:  # a decoder raises nearly anything on bad bytes
                facts.pop(name, None)
                failed[name] = disk.one_line(error)
        if failed and skip_bad is not True:
            bad = {str(self.root / name): why for name, why in failed.items()}
            raise disk.Unreadable(bad, self.skippable, "recording")
        self.bad = {**known, **failed}
        if not facts:
            lines = [
                *disk.describe(self.left_out),
                *(f"{disk.printable(n)}: {w}" for n, w in self.bad.items()),
            ]
            also = "".join(f"; {line}" for line in lines[: disk.NAMES_SHOWN])
            raise ValueError(f"{root} has no recording in it; want wav, flac, ogg or mp3 files{also}")
        self.names = list(facts)
        self.files = {name: files[name] for name in self.names}
        self.rate = rate or min(fact.rate for fact in facts.values())
        self.lengths = np.array([length_at(fact, self.rate) for fact in facts.values()])
        found = speakers_of(self.names)
        label_of = {name: label for label, name in enumerate(speakers or sorted(set(found)))}
        self.no_classes = sorted(set(found) - label_of.keys())
        labelled = bool(found) and not self.no_classes
        self.classes = list(label_of) if labelled else None
        self.labels = np.array([label_of[name] for name in found]) if labelled else None

    def __len__(self) -> int:
        return len(self.names)

    def stamp(self) -> bytes:
        return disk.stamp_of(self.files)

    def contents(self, numbers: np.ndarray) -> bytes:
        names = [self.names[number] for number in numbers]
        return str(self.rate).encode() + disk.contents_digest(self.root, names)

    def whole(self, number: int) -> np.ndarray:
        """All samples of a recording: float32 ``(T,)``.

        Raises:
            Unreadable: the file can't be read.
        """
        samples: np.ndarray
        (samples,) = self.read(np.array([number]), np.zeros(1, np.int64), int(self.lengths[number]))
        return samples

    def read(self, numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """``length`` samples from each start on: float32 ``(n, length)``.

        Raises:
            Unreadable: files can't be read; it names all of them.
        """
        parts, bad = [], {}
        for number, start in zip(numbers.tolist(), starts.tolist(), strict=True):
            file = self.root / self.names[number]
            try:
                parts.append(read_recording(file, self.rate, start, length))
            except MemoryError:  # the file isn't to blame
                raise
            except Exception as error:  # a decoder raises nearly anything on bad bytes
                bad[str(file)] = disk.one_line(error)
        if bad:
            raise disk.Unreadable(bad, self.skippable, "recording")
        return np.stack(parts)


def speakers_of(names: Sequence[str]) -> list[str]:
    """The speaker of each recording, by its file's name; empty where the names don't say.

    In LibriSpeech's layout it is the first of the numbers; else the first folder below those that all
    recordings are in, such as ``wav48`` in VCTK's layout.

    >>> speakers_of(["wav48/p225/p225_001.wav", "wav48/p226/p226_001.wav"])
    ['p225', 'p226']
    >>> speakers_of(["dev-clean/84/121123/84-121123-0000.flac", "test-clean/61/70968/61-70968-0001.flac"])
    ['84', '61']
    >>> speakers_of(["anna/a.wav", "b.wav"])
    []
    """
    matches = [LIBRISPEECH.fullmatch(name) for name in names]
    if all(matches):
        return [match[1] for match in matches if match]
    folders = [PurePosixPath(name).parent.as_posix() for name in names]
    above = commonpath(folders)
    below = [PurePosixPath(folder).relative_to(above).parts for folder in folders]
    if all(below):
        return [parts[0] for parts in below]
    one = PurePosixPath(above).name  # all in one folder: one speaker, if the folder has a name
    return [one] * len(names) if one and not any(below) else []


def _is_recording_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES
