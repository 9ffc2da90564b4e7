"""Recordings as files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from vqfast.data.audio.recording import wav_bytes
from vqfast.data.protocol import Format


def formats_at(rate: int) -> dict[str, Format]:
    """The formats of recordings of a rate; files are named by the number of their first recording."""

    def waves(batches: Iterator[Iterable[Tensor]]) -> Iterator[bytes]:
        return (wav_bytes(item[0].numpy(), rate) for batch in batches for item in batch)

    return {
        "wav": Format(lambda numbers: [f"{number:07d}.wav" for number in numbers], waves, ends=True),
        "npy": Format(lambda numbers: [f"{numbers.start:07d}.npy"], _array),
    }


def _array(batches: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([batch.float().numpy() for batch in batches]))
    yield buffer.getvalue()
