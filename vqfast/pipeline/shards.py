"""Results on disk in shards: a killed run goes on from them, and several processes share them out."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vqfast.data.protocol import BATCH
from vqfast.files import HiddenFile, open_file, write_file
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks
from vqfast.saving.storage import read_tensors

SHARD = 1024  # items in a shard
FORMATS = ("npz", "safetensors")  # of shards; a folder has those of one

Advance = Callable[[float], object]  # is called with the number of items done since the last call


def shards(num: int, ranks: Ranks) -> Iterator[range]:
    """The numbers of the items in each shard of this process: every world-th shard."""
    for shard in range(-(-num // SHARD))[ranks.rank :: ranks.world]:
        yield range(shard * SHARD, min(num, (shard + 1) * SHARD))


def write_files(
    folder: Path,
    num: int,
    ranks: Ranks,
    *,
    label: str,
    item: str,
    names: Callable[[range], list[str]],
    make: Callable[[range, Advance], Iterable[bytes | HiddenFile]],
    batch: int = BATCH,
) -> None:
    """Writes the files of every shard of ``num`` items.

    A shard whose last file is there stays, so a killed run goes on where it was. Where each item has a file,
    whole batches of those that are there stay too. The bytes of a file don't depend on which process makes
    it.

    Args:
        label: of the progress bar.
        item: what an item is called there.
        names: numbers of items -> the names of their files.
        make: numbers of items -> the bytes of these files, or hidden files in the folder that have them;
            calls its second argument as it proceeds.
        batch: how many items are made together; the numbers given to ``make`` begin with a batch.
    """
    with bar(ranks, label, num, unit=item) as progress:
        for numbers in shards(num, ranks):
            files = [folder / name for name in names(numbers)]
            if files[-1].is_file():
                progress.update(len(numbers) * ranks.world)
                continue
            if len(files) == len(numbers):
                there = next(place for place, file in enumerate(files) if not file.is_file())
                there -= there % batch
                progress.update(there * ranks.world)
                numbers, files = numbers[there:], files[there:]
            made = make(numbers, lambda done: progress.update(done * ranks.world))
            for file, data in zip(files, made, strict=True):
                if isinstance(data, HiddenFile):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    data.place(file)
                else:
                    write_file(file, data)
    ranks.meet()


def write_shards(
    folder: Path,
    num: int,
    ranks: Ranks,
    *,
    label: str,
    item: str,
    make: Callable[[range, Advance], dict[str, np.ndarray]],
    format: str = "npz",
) -> None:
    """Writes the arrays of every shard, as ``00000.npz`` and so on, or in another of ``FORMATS``.

    See ``write_files``.
    """

    def archive(numbers: range, advance: Advance) -> Iterator[bytes]:
        arrays: dict[str, Any] = make(numbers, advance)
        if format == "safetensors":
            from safetensors.numpy import save

            yield save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
            return
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        yield buffer.getvalue()

    def names(numbers: range) -> list[str]:
        return [f"{numbers.start // SHARD:05d}.{format}"]

    write_files(folder, num, ranks, label=label, item=item, names=names, make=archive)


def read_shards(folder: Path, num: int, numbers: range) -> dict[str, np.ndarray]:
    """The arrays of integers that ``write_shards`` wrote, for ``numbers`` among the ``num`` items.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged, or isn't a shard.
    """
    parts: list[dict[str, np.ndarray]] = []
    for shard in range(numbers.start // SHARD, -(-numbers.stop // SHARD)):
        first = shard * SHARD
        places = slice(max(0, numbers.start - first), numbers.stop - first)
        path = existing_shard(folder, shard)
        try:
            arrays = whole_arrays(path, min(num - first, SHARD))
            parts.append({name: array[places] for name, array in arrays.items()})
            shapes = [{name: array.shape[1:] for name, array in part.items()} for part in parts]
            if shapes[-1] != shapes[0]:
                raise ValueError(f"its items have shapes {shapes[-1]}; want {shapes[0]} as in earlier shards")
        except Exception as error:  # a damaged zip raises nearly anything
            raise ValueError(f"{path} is no whole shard: {error}") from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def existing_shard(folder: Path, shard: int) -> Path:
    """The file of a shard.

    Raises:
        FileNotFoundError: it is missing.
    """
    paths = [folder / f"{shard:05d}.{format}" for format in FORMATS]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{paths[0]} is missing: the codes aren't complete; encode or sample first")


def whole_arrays(path: Path, num: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a shard, each of ``num`` items, or all of as many.

    They aren't compressed, so the file bounds their size.

    Raises:
        ValueError: they are others, or larger than the file. A damaged zip raises nearly anything.
    """
    if path.suffix == ".safetensors":
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    else:
        with open_file(path) as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
            archive = cast(zipfile.ZipFile, file.zip)
            if sum(member.file_size for member in archive.infolist()) > os.fstat(opened.fileno()).st_size:
                raise ValueError("its arrays are larger than the file")
            arrays = {name: file[name] for name in file.files}
    if num is None:
        num = next((len(array) for array in arrays.values() if array.ndim), 0)
    for name, array in arrays.items():
        if array.dtype.kind not in "iu" or array.shape[:1] != (num,):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; want integers, {num} items")
    return arrays


def pack(indices: Tensor, num_embeddings: int) -> np.ndarray:
    """Codes in the smallest type that holds them, which is unsigned unless some are -1."""
    lowest = -num_embeddings if (indices < 0).any() else num_embeddings - 1
    return indices.cpu().numpy().astype(np.min_scalar_type(lowest))


def unpack(indices: np.ndarray) -> Tensor:
    """Codes as int64."""
    return torch.from_numpy(indices.astype(np.int64))
