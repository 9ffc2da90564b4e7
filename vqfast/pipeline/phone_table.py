"""Codes against phones: which phone each code goes with, and how often that is right."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqfast.data import Recordings, disk
from vqfast.data.audio.phones import SUFFIXES, phone_at, read_phones
from vqfast.models import SpeechVQVAE
from vqfast.pipeline.coding import encoded
from vqfast.pipeline.ranks import ALONE, Ranks


@dataclass(frozen=True)
class PhoneTable:
    """How often each code stands at each phone.

    Attributes:
        phones: their names, sorted.
        counts: int64 ``(N, K, P)``, of each recording that has labels.
    """

    phones: list[str]
    counts: np.ndarray

    @property
    def total(self) -> int:
        """How many codes stand at a phone."""
        return int(self.counts.sum())

    def shares_right(self) -> tuple[float, float]:
        """The share of codes whose phone is the most frequent one of the code, and the most common phone's.

        Both are found in the other recordings each time, so that they don't know the answers; if there is
        only one, in itself.
        """
        others = self.counts.sum(0) - self.counts if len(self.counts) > 1 else self.counts  # (N, K, P)
        by_code, common = others.argmax(2), others.sum(1).argmax(1)
        own = np.take_along_axis(self.counts, by_code[:, :, None], 2).sum()
        most = np.take_along_axis(self.counts.sum(1), common[:, None], 1).sum()
        return own / self.total, most / self.total

    def csv(self) -> bytes:
        """A line for each code: its count, its most frequent phone and that one's share, all counts."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["code", "count", "phone", "share", *self.phones])
        for code, row in enumerate(self.counts.sum(0)):
            count, most = int(row.sum()), int(row.argmax())
            found = [self.phones[most], f"{row[most] / count:.4f}"] if count else ["", ""]
            writer.writerow([code, count, *found, *row.tolist()])
        return file.getvalue().encode()


def phone_table(
    vqvae: SpeechVQVAE,
    dataset: Recordings,
    labels: str | Path,
    *,
    tier: str | None = None,
    ranks: Ranks = ALONE,
) -> PhoneTable:
    """Compares the codes of recordings with phones: the phone of a code is that of the middle of its samples.

    Args:
        vqvae: encodes the recordings.
        dataset: the recordings.
        labels: a folder of files of phones, see ``read_phones``: each has the name of a recording but another
            suffix, at the same place below the folder, or in the folder itself.
        tier: of TextGrids, see ``read_phones``.
        ranks: the device to compute on.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no recording has phones, or a file of them can't be read.
    """
    folder = disk.existing_path("phones", labels)
    found: list[tuple[int, list[str | None]]] = []
    for number, name in enumerate(dataset.names):
        file = _beside(folder, name)
        if file is not None:
            phones = read_phones(file, tier=tier)
            ends = np.arange(0, dataset.lengths[number], vqvae.stride)
            times = (ends + vqvae.stride / 2) / dataset.rate
            found.append((number, [phone_at(phones, time) for time in times]))
    names = sorted({phone for _, row in found for phone in row if phone})
    if not names:
        want = f"such as {Path(dataset.names[0]).with_suffix('.TextGrid')}"
        raise ValueError(f"phones is {labels}, which has none for the recordings; want files {want}")
    counts = np.zeros((len(found), vqvae.vq.num_embeddings, len(names)), np.int64)
    for place, (number, row) in enumerate(found):
        (indices,), _ = encoded(vqvae, dataset, ranks).read(range(number, number + 1))
        for code, phone in zip(indices[0].tolist(), row, strict=False):
            if phone:
                counts[place, code, names.index(phone)] += 1
    return PhoneTable(names, counts)


def _beside(folder: Path, name: str) -> Path | None:
    """The file of phones of a recording, or None."""
    places = [folder / name, folder / Path(name).name]
    files = (place.with_suffix(suffix) for place in places for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
