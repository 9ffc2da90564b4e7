"""What the pipeline knows of data: sets of equally shaped items, and the kinds of them.

A kind of data, such as images, is a folder here whose ``Modality`` says how it is read, written and shown. To
add one, write such a folder and list its modality in ``vqfast.data.MODALITIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from vqfast.files import HiddenFile

BATCH = 128  # items at a time where nothing is learned; fixed, so that results don't depend on it


class Dataset(Protocol):
    """Items of one shape that are read when they are needed, by their numbers ``0..N - 1``.

    Attributes:
        shape: of an item: channels, then sizes.
        labels: int64 ``(N,)``, or None.
        num_classes: above all labels, or None where there are none.
        fingerprint: identifies the items, their labels and their order.
    """

    shape: tuple[int, ...]
    labels: np.ndarray | None
    num_classes: int | None

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The items of these numbers: float32 ``(n, *shape)``."""
        ...


class Source(Dataset, Protocol):
    """A dataset in files.

    Attributes:
        fingerprint: takes reading all bytes, so a caller who knows it from before may set it.
        stamp: is the same only while nobody touches the files; quick.
        findings: how the files were read, what was left out and why, as JSON values: at least ``depth``,
            ``classes`` and ``bad``, which ``Modality.load`` takes as ``depth``, ``classes`` and ``skip_bad``.
    """

    @property
    def fingerprint(self) -> str: ...

    @fingerprint.setter
    def fingerprint(self, value: str) -> None: ...

    @property
    def stamp(self) -> str: ...

    @property
    def findings(self) -> dict[str, Any]: ...

    def describe(self) -> list[str]:
        """``findings`` for people, in lines."""
        ...

    def check(self, advance: Callable[[int], object]) -> None:
        """Reads every item; calls ``advance`` with the number of items read since the last call.

        Raises:
            Unreadable: files can't be read; it names all of them.
        """
        ...

    def varied(self, numbers: Sequence[int] | np.ndarray | Tensor, chances: Tensor) -> Tensor:
        """As ``batch``, for training: each item is varied at random, in the way that the user asked for.

        Args:
            chances: float64 ``(n, 3)`` in [0, 1), which alone decide how.
        """
        ...

    def split(self, val: float, *, seed: int, group: str | None = None) -> tuple[Source, Source]:
        """Splits at random into a training part and a held-out one, which has the share ``val``.

        Args:
            group: comes from the user and says which items stay together; None lets each go its own way.
        """
        ...

    def subset(self, numbers: np.ndarray) -> Source:
        """The items of these numbers, int64 ``(n,)``, as a set of their own."""
        ...


class Piece(NamedTuple):
    """A part of some recordings that are drawn together.

    Attributes:
        places: which recordings.
        first: number of the first sample.
        waves: ``(n, 1, t)`` on the CPU.
    """

    places: list[int]
    first: int
    waves: Tensor


@dataclass(frozen=True)
class Format:
    """How decoded items become files.

    Args:
        file_names: numbers of items that follow each other -> the names of their files.
        files: batches of those items, ``BATCH`` in each but the last -> the bytes of the files.
        streamed: of models that draw recordings piece by piece: a folder, the lengths of recordings, and
            pieces of them -> hidden files in the folder, in the order of the recordings; or None.
    """

    file_names: Callable[[range], list[str]]
    files: Callable[[Iterator[Any]], Iterator[bytes]]
    streamed: Callable[[Path, Sequence[int], Iterator[Piece]], Iterator[HiddenFile]] | None = None


class Media(NamedTuple):
    """A file that browsers show or play.

    Attributes:
        kind: its MIME type: of a picture, a sound or a video, such as ``"image/png"`` or ``"audio/wav"``.
        data: its bytes.
    """

    kind: str
    data: bytes


class Modality(Protocol):
    """A kind of data.

    Attributes:
        item: what one item is called, such as ``"image"``.
        like_run: the options of ``load`` for which other data follows the data of a run.
    """

    item: str

    @property
    def like_run(self) -> tuple[str, ...]: ...

    @property
    def formats(self) -> Mapping[str, Format]:
        """The formats that items can be written in, by name; the first is the default."""
        ...

    @property
    def load(self) -> Callable[..., Source]:
        """The function that opens a set of items, such as ``load_images``."""
        ...

    def found(self, findings: Mapping[str, Any]) -> Modality:
        """The same kind, for data that was read with these ``Source.findings``."""
        ...

    def kept_mask(self, keep: str, shape: tuple[int, ...]) -> Tensor:
        """Which codes of a grid a completion keeps: bool, of ``shape``. ``keep`` comes from the user."""
        ...

    def media(self, item: Tensor) -> list[Media]:
        """What a page shows of an item ``(*item shape)``; of a sound perhaps its spectrogram and itself."""
        ...

    def show_items(self, items: Tensor, /, *, columns: int) -> bytes:
        """A picture of items ``(N, *item shape)``, so many in a line, as a PNG."""
        ...

    def show_pairs(self, originals: Tensor, reconstructions: Tensor) -> bytes:
        """A picture of items and their reconstructions, both ``(N, *item shape)``, as a PNG."""
        ...

    def show_completions(self, originals: Tensor, kept: Tensor, completions: Tensor) -> bytes:
        """A picture of items, of what is kept of them, and of their completions, as a PNG.

        Args:
            originals: ``(N, *item shape)``.
            kept: see ``kept_mask``.
            completions: ``(draws, N, *item shape)``.
        """
        ...
