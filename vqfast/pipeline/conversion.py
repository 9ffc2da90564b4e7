"""Recordings in another voice: encoded, and decoded as another speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import torch
from torch import Tensor

from vqfast.checks import check_choice
from vqfast.data import Recordings
from vqfast.data.audio import wav_bytes
from vqfast.models import SpeechVQVAE
from vqfast.pipeline.coding import results, weights_digest
from vqfast.pipeline.items import decode_items, encode_items, together
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import Advance, write_files


def convert(
    run: Run, vqvae: SpeechVQVAE, dataset: Recordings, *, speaker: str, out: Run, ranks: Ranks = ALONE
) -> None:
    """Gives recordings the voice of another speaker; they lie under their names in ``wav``.

    Recordings that are there aren't made again.

    Args:
        run: the run of the model.
        vqvae: the run's, on the device of ``ranks``.
        dataset: the recordings, of any speakers.
        speaker: the name of one that the model was trained with.
        out: where the recordings go.
        ranks: the processes that work together.

    Raises:
        ValueError: the model knows no speakers or not this one, or the folder has other recordings.
    """
    speakers = (run.settings("data") or {}).get("classes")
    if vqvae.num_classes is None or not isinstance(speakers, list):
        raise ValueError(
            f"speaker is {speaker!r}, but the run was trained without speakers; want another run"
        )
    check_choice("speaker", speaker, speakers)
    label = speakers.index(speaker)

    def converted(numbers: range) -> list[Tensor]:
        levels = encode_items(vqvae, dataset, numbers, ranks.device)
        return [decode_items(vqvae, levels, torch.full((len(numbers),), label), numbers)]

    def make(numbers: range, advance: Advance) -> Iterator[bytes]:
        (grid,), first = vqvae.code_shapes(dataset.shape[1:]), numbers.start
        for (waves,) in results(converted, numbers, together(vqvae, grid)):
            for wave, length in zip(waves, dataset.lengths[first:].tolist(), strict=False):
                yield wav_bytes(wave[0, :length].numpy(), dataset.rate)
            first += len(waves)
            advance(len(waves))

    def names(numbers: range) -> list[str]:
        files = dataset.names[numbers.start : numbers.stop]
        return [str(PurePosixPath(file).with_suffix(".wav")) for file in files]

    twice = [name for name, count in Counter(names(range(len(dataset)))).items() if count > 1]
    if twice:
        raise ValueError(f"several recordings would become {', '.join(twice)}; want names that differ")
    settings = {"data": dataset.fingerprint, "speaker": speaker, "weights": weights_digest(run, "vqvae")}
    out.begin("wav", settings, ranks=ranks)
    write_files(
        out.folder / "wav",
        len(dataset),
        ranks,
        label="convert",
        item="recording",
        names=names,
        make=make,
        batch=1,
    )
