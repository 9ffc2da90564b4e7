"""Steps 2 and 5: data to codes, and codes to data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_choice
from vqfast.data import Dataset
from vqfast.data.protocol import BATCH
from vqfast.files import HiddenFile, open_file
from vqfast.models import Autoencoder, SpeechVQVAE
from vqfast.pipeline.codes import CodeGrids, shard_of
from vqfast.pipeline.items import (
    check_temperature,
    decode_items,
    encode_items,
    ends_of,
    noted_temperature,
    spoken,
    together,
)
from vqfast.pipeline.levels import concatenated
from vqfast.pipeline.parts import modality_of
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import FORMATS, Advance, write_files, write_shards
from vqfast.pipeline.video_actions import encoded_actions
from vqfast.sampling.memory import in_batches

CLIPS = 16  # at a time, in place of ``BATCH`` items


def encode(
    run: Run,
    vqvae: Autoencoder,
    dataset: Dataset,
    *,
    part: str,
    format: str | None = None,
    out: Run | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Step 2: encodes data; the codes and any labels lie in shards under ``codes/<part>``.

    Shards that are there aren't made again. ``train_vqvae`` has an example.

    Args:
        run: the run of the VQ-VAE.
        vqvae: the run's, on the device of ``ranks``.
        dataset: the data, such as a part that ``reopen_parts`` gives.
        part: the name of the data in the folder.
        format: of the shards, ``"npz"`` (the default of a new folder) or ``"safetensors"``.
        out: where the codes go; by default into the run.
        ranks: the processes that work together.

    Raises:
        ValueError: items can't be read or don't fit the model, there is no such format, or the folder has
            other codes of that name, or these in another format.
    """
    out = out or run
    before: dict[str, str] = out.settings(f"codes/{part}") or {}
    kind = before.get("format", FORMATS[0]) if format is None else format
    check_choice("format", kind, FORMATS)
    codes = encoded(vqvae, dataset, ranks)

    def make(numbers: range, advance: Advance) -> dict[str, np.ndarray]:
        batches = []
        for first in range(0, len(numbers), BATCH):
            batches.append(codes.read(numbers[first : first + BATCH])[0])
            advance(len(batches[-1][0]))
        labels = None if dataset.labels is None else dataset.labels[numbers.start : numbers.stop]
        return shard_of(concatenated(batches), vqvae.codebook_sizes, labels, codes.actions(numbers))

    settings = {"data": dataset.fingerprint, "num": len(dataset), "weights": weights_digest(run, "vqvae")}
    if kind != FORMATS[0]:
        settings["format"] = kind
    out.begin(f"codes/{part}", settings, ranks=ranks)
    names = {"label": f"encode {part}", "item": modality_of(run).item}
    write_shards(out.folder / "codes" / part, len(dataset), ranks, make=make, format=kind, **names)


def decode(
    run: Run,
    vqvae: Autoencoder,
    codes: CodeGrids,
    *,
    format: str | None = None,
    out: Run | None = None,
    ranks: Ranks = ALONE,
    temperature: float = 1.0,
) -> None:
    """Step 5: decodes codes; the items lie in files of a format, in the folder of its name.

    Files that are there aren't made again. ``train_vqvae`` has an example.

    Args:
        run: the run of the VQ-VAE.
        vqvae: the run's, on the device of ``ranks``.
        codes: such as ``sample`` or ``open_codes`` give.
        format: of images ``"grid"`` (sheets, the default), ``"png"`` (single pictures) or ``"npy"`` (arrays
            uint8 ``(N, C, H, W)``); of recordings ``"wav"`` (the default) or ``"npy"`` (arrays float32
            ``(N, 1, T)``); of clips ``"mp4"`` (the default), ``"gif"`` or ``"npy"`` (arrays uint8
            ``(N, T, H, W, C)``).
        out: where the files go; by default into the run.
        ranks: the processes that work together.
        temperature: of recordings, whose samples are drawn: see ``CausalPrior.sample``.

    Raises:
        TypeError: the temperature isn't a number.
        ValueError: there is no such format, a code is out of range, the folder has items of other codes, or
            the temperature is out of range or for items that aren't drawn.
    """
    out, modality = out or run, modality_of(run)
    format = format or next(iter(modality.formats))
    check_choice("format", format, modality.formats)
    check_temperature(vqvae, temperature)
    writer = modality.formats[format]

    def make(numbers: range, advance: Advance) -> Iterator[bytes | HiddenFile]:
        if isinstance(vqvae, SpeechVQVAE) and writer.streamed is not None:
            for first in range(0, len(numbers), BATCH):
                own = numbers[first : first + BATCH]
                ((indices,), labels) = codes.read(own)
                lengths = (ends_of(indices).clamp(min=1) * vqvae.stride).tolist()
                pieces = spoken(vqvae, indices.to(ranks.device), labels, own, temperature)
                yield from writer.streamed(folder, lengths, pieces)
                advance(len(own))
            return

        def batches() -> Iterator[Tensor]:
            for batch in decoded(vqvae, codes, numbers, ranks, temperature=temperature):
                yield batch
                advance(len(batch))

        yield from writer.files(batches())

    settings = {"codes": codes.fingerprint, "num": codes.num, "weights": weights_digest(run, "vqvae")}
    settings |= noted_temperature(temperature)
    out.begin(format, settings, ranks=ranks)
    folder, names = out.folder / format, writer.file_names
    write_files(folder, codes.num, ranks, label="decode", item=modality.item, names=names, make=make)


def encoded(vqvae: Autoencoder, dataset: Dataset, ranks: Ranks = ALONE) -> CodeGrids:
    """The codes of data, made whenever they are read.

    >>> from vqfast.data import load_images
    >>> from vqfast.models import VQVAE
    >>> codes = encoded(VQVAE(hidden_channels=8, in_channels=1), load_images("digits", size=8))
    >>> (indices,), labels = codes.read(range(3))
    >>> indices.shape, labels
    (torch.Size([3, 2, 2]), tensor([0, 1, 2]))
    """

    def read(numbers: range) -> tuple[list[Tensor], Tensor | None]:
        work = partial(encode_items, vqvae, dataset, device=ranks.device)
        batches = results(work, numbers, at_once(vqvae))
        labels = dataset.labels
        own = None if labels is None else torch.from_numpy(labels[numbers.start : numbers.stop])
        return concatenated(batches), own

    return CodeGrids(len(dataset), dataset.fingerprint, read, encoded_actions(vqvae, dataset))


def decoded(
    vqvae: Autoencoder,
    codes: CodeGrids,
    numbers: range,
    ranks: Ranks = ALONE,
    *,
    levels: int | None = None,
    temperature: float = 1.0,
) -> Iterator[Tensor]:
    """The items of the codes of these numbers: floats ``(n, C, *spatial)``, ``at_once`` at a time.

    An item is decoded with the same others whichever are asked for: sums of convolutions, and so the last
    bits of an item, may depend on the batch.

    Args:
        levels: decodes so many levels from the coarsest alone; by default all.
        temperature: of recordings, whose samples are drawn.
    """

    def work(batch: range) -> list[Tensor]:
        grids, labels = codes.read(batch)
        shown = [indices.to(ranks.device) for indices in grids[:levels]]
        return [decode_items(vqvae, shown, labels, batch, temperature)]

    size = min(at_once(vqvae), together(vqvae, codes.read(numbers[:1])[0][0].shape[1:]))
    for first in range(numbers.start // size * size, numbers.stop, size):
        ((items,),) = results(work, range(first, min(first + size, codes.num)), size)
        yield items[max(numbers.start - first, 0) : numbers.stop - first]


def at_once(model: object) -> int:
    """How many items a model takes at a time where nothing is learned: fewer clips than others."""
    return CLIPS if getattr(model, "ndim", 2) == 3 else BATCH


@torch.no_grad()
def results(
    work: Callable[[range], Sequence[Tensor]], numbers: range, size: int = BATCH
) -> Iterator[list[Tensor]]:
    """``work(numbers)`` on the CPU, ``size`` numbers at a time; a batch too large for memory is divided."""
    for first in range(0, len(numbers), size):
        batch = numbers[first : first + size]

        def piece(places: range, batch: range = batch) -> list[Tensor]:
            return [tensor.cpu() for tensor in work(batch[places.start : places.stop])]

        yield concatenated(in_batches(piece, len(batch), len(batch)))


def weights_digest(run: Run, name: str) -> str:
    """16 hex digits that identify the weights of a run's model."""
    digest = hashlib.sha256()
    with open_file(Path(run.folder, f"{name}.safetensors")) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
