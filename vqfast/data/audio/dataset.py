"""A set of recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data import disk
from vqfast.data.audio.folder import RecordingFiles
from vqfast.data.items import Items


class Recordings(Items):
    """A set of recordings at one rate, read when they are needed; ``load_audio`` makes one.

    Attributes:
        shape: ``(1, T)``, T the samples of the longest recording of the loaded set; shorter ones are padded
            with zeros at their end.
        rate: samples a second.
        crop: seconds of a recording that a step of training takes.
        labels: int64 ``(N,)``, the speaker of each, or None.
        speakers: the names of the speakers by label, or None.
        num_classes: the number of speakers of the loaded set, which the parts of a split keep; or None.

    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from vqfast.data import load_audio
    >>> from vqfast.data.audio import wav_bytes
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, length in (("anna", 900), ("ben", 400)):
    ...         Path(folder, name).mkdir()
    ...         _ = Path(folder, name, "a.wav").write_bytes(wav_bytes(np.zeros(length), 8000))
    ...     recordings = load_audio(folder)
    ...     parts = recordings.crops([1, 0, 1], 500, chances=[0, 0.5, 0])
    >>> recordings.shape, recordings.lengths, recordings.speakers
    ((1, 900), array([900, 400]), ['anna', 'ben'])
    >>> parts.shape
    torch.Size([3, 1, 500])
    """

    item = "recording"
    one_class, classes = "speaker", "speakers"
    num_classes: int | None

    def __init__(self, recordings: RecordingFiles, name: str, crop: float) -> None:
        super().__init__(recordings, name, recordings.labels)
        self.rate, self.speakers, self.crop = recordings.rate, recordings.classes, crop
        if self.speakers is not None:
            self.num_classes = len(self.speakers)
        self.shape = (1, int(recordings.lengths.max()))
        self._recordings = recordings

    @property
    def lengths(self) -> np.ndarray:
        """The samples of each recording before it is padded: int64 ``(N,)``."""
        return self._recordings.lengths[self._numbers]

    @property
    def names(self) -> list[str]:
        """The names of the files, relative to the folder."""
        return [self._recordings.names[number] for number in self._numbers.tolist()]

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The recordings of these numbers, as float32 ``(len(numbers), 1, T)`` in [-1, 1].

        Args:
            numbers: integers in 0..N-1, in any order, repeated or not.

        Raises:
            TypeError: ``numbers`` is no list of integers.
            ValueError: a number is out of range.
            Unreadable: files can't be read; it names all of those among ``numbers``.
        """
        own = self._own(numbers)
        return self._read(own, np.zeros_like(own), self.shape[1])

    def recording(self, number: int) -> Tensor:
        """One recording without padding: float32 ``(1, 1, length)``.

        Raises:
            TypeError, ValueError, Unreadable: as in ``batch``.
        """
        (own,) = self._own([number]).tolist()
        return torch.from_numpy(self._recordings.whole(own)).view(1, 1, -1)

    def check(self, advance: Callable[[int], object] = lambda read: None) -> None:
        """As ``Items.check``, in memory for one recording."""
        bad: dict[str, str] = {}
        for number in range(len(self)):
            try:
                self.recording(number)
            except disk.Unreadable as error:
                bad |= error.bad
            advance(1)
        if bad:
            raise disk.Unreadable(bad, self._recordings.skippable, self.item)

    def crops(
        self, numbers: Sequence[int] | np.ndarray | Tensor, length: int, chances: Sequence[float] | Tensor
    ) -> Tensor:
        """A part of each of these recordings, as float32 ``(len(numbers), 1, length)``.

        Where a recording is shorter than ``length``, it is padded with zeros at its end.

        Args:
            numbers: as in ``batch``.
            length: in samples.
            chances: ``(len(numbers),)``, random numbers in [0, 1), which decide where each part begins.

        Raises:
            TypeError, ValueError, Unreadable: as in ``batch``.
        """
        check_integer("length", length)
        own = self._own(numbers)
        places = np.maximum(self._recordings.lengths[own] - length, 0) + 1
        return self._read(own, (np.asarray(chances) * places).astype(np.int64), length)

    def _read(self, own: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
        if not own.size:
            return torch.empty(0, 1, length)
        return torch.from_numpy(self._recordings.read(own, starts, length)).unsqueeze(1)

    @property
    def findings(self) -> dict[str, Any]:
        """As ``Items.findings``, and the rate."""
        return {**super().findings, "rate": self.rate}

    def summary(self) -> str:
        """Rate and durations, in words."""
        lengths = self._recordings.lengths
        minutes = lengths.sum() / self.rate / 60
        return f"{self.rate} Hz, {minutes:.1f} minutes, the longest {lengths.max() / self.rate:.1f} s"
