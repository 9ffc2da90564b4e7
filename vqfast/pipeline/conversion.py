"""Recordings in another voice: encoded, and decoded as another speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import torch

from vqfast.checks import check_choice
from vqfast.data import Recordings
from vqfast.data.audio.formats import write_waves
from vqfast.data.protocol import BATCH
from vqfast.files import HiddenFile
from vqfast.models import SpeechVQVAE
from vqfast.pipeline.coding import weights_digest
from vqfast.pipeline.items import check_temperature, encode_items, noted_temperature, spoken
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import Advance, write_files


def convert(
    run: Run,
    vqvae: SpeechVQVAE,
    dataset: Recordings,
    *,
    speaker: str,
    out: Run,
    ranks: Ranks = ALONE,
    temperature: float = 1.0,
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
        temperature: see ``CausalPrior.sample``.

    Raises:
        TypeError: the temperature isn't a number.
        ValueError: the model knows no speakers or not this one, the folder has other recordings, or the
            temperature is out of range.
    """
    speakers = (run.settings("data") or {}).get("classes")
    if vqvae.num_classes is None or not isinstance(speakers, list):
        raise ValueError(
            f"speaker is {speaker!r}, but the run was trained without speakers; want another run"
        )
    check_choice("speaker", speaker, speakers)
    check_temperature(vqvae, temperature)
    label = speakers.index(speaker)

    def make(numbers: range, advance: Advance) -> Iterator[HiddenFile]:
        for first in range(0, len(numbers), BATCH):
            own = numbers[first : first + BATCH]
            (indices,) = encode_items(vqvae, dataset, own, ranks.device)
            pieces = spoken(vqvae, indices, torch.full((len(own),), label), own, temperature)
            lengths = dataset.lengths[own.start : own.stop].tolist()
            yield from write_waves(folder, lengths, pieces, dataset.rate)
            advance(len(own))

    def names(numbers: range) -> list[str]:
        files = dataset.names[numbers.start : numbers.stop]
        return [str(PurePosixPath(file).with_suffix(".wav")) for file in files]

    twice = [name for name, count in Counter(names(range(len(dataset)))).items() if count > 1]
    if twice:
        raise ValueError(f"several recordings would become {', '.join(twice)}; want names that differ")
    folder = out.folder / "wav"
    settings: dict[str, str | float] = {
        "data": dataset.fingerprint,
        "speaker": speaker,
        "weights": weights_digest(run, "vqvae"),
    }
    settings |= noted_temperature(temperature)
    out.begin("wav", settings, ranks=ranks)
    write_files(
        folder,
        len(dataset),
        ranks,
        label="convert",
        item="recording",
        names=names,
        make=make,
        batch=1,
    )
