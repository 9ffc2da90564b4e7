"""Codes on disk: shards that a killed run goes on from, and that several processes share."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.files import open_file, write_file
from vqfast.pipeline.checkpoint import Run
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks

SHARD = 1024  # items a shard
BATCH = 128  # items at a time where nothing is learned; fixed, so that results don't depend on it

Tick = Callable[[float], object]  # is told how many more items are done


@dataclass(frozen=True)
class Codes:
    """Grids of codes that are read when they are needed.

    Args:
        num: how many.
        fingerprint: identifies them.
        read: rows -> int64 codes ``(n, H, W)``, and int64 labels ``(n,)`` where there are any.
    """

    num: int
    fingerprint: str
    read: Callable[[range], tuple[Tensor, Tensor | None]]

    def all(self) -> tuple[Tensor, Tensor | None]:
        """Codes ``(N, H, W)``, and labels ``(N,)`` where there are any."""
        return self.read(range(self.num))


def stored(run: Run, stage: str) -> Codes:
    """The codes that a stage of a run wrote: ``codes/<part>`` or ``samples``.

    Raises:
        FileNotFoundError: it hasn't been begun, or isn't finished.
        TypeError, ValueError: run.json has no sensible number of them; and, when they are read: a file is
            damaged, or another's.
    """
    settings, folder = run.settings(stage), run.folder / stage
    if settings is None:
        step = "sample" if stage == "samples" else "encode"
        raise FileNotFoundError(f"{run.folder} holds no {stage}: {step} first")
    num: Any = settings.get("num")
    check_integer(f"num of {stage} in {run.folder / 'run.json'}", num)
    _existing_shard(folder, (num - 1) // SHARD)

    def read(rows: range) -> tuple[Tensor, Tensor | None]:
        arrays = read_shards(folder, num, rows)
        forms = {name: array.ndim for name, array in arrays.items()}
        if forms not in ({"codes": 3}, {"codes": 3, "labels": 1}):
            raise ValueError(
                f"{folder} holds arrays of rank {forms}; want codes (N, H, W), maybe labels (N,)"
            )
        return unpack(arrays["codes"]), unpack(arrays["labels"]) if "labels" in arrays else None

    digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
    return Codes(num, digest, read)


def open_codes(path: str) -> Codes:
    """Codes that somebody names: a folder that a stage wrote, or a ``.npy`` file of integers ``(N, H, W)``.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it's something else.
    """
    where = Path(path)
    if where.is_dir():
        folder = next((p for p in where.absolute().parents if (p / "run.json").is_file()), None)
        if folder is None:
            raise ValueError(
                f"codes is {path}; want a folder such as OUT/samples that sample or encode wrote, or a .npy"
            )
        return stored(Run(folder, lock=False), where.absolute().relative_to(folder).as_posix())
    if not where.is_file():
        raise FileNotFoundError(f"codes is {path}; no such file or folder")
    try:
        array = np.load(where, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"codes is {path}, which is no whole .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 3 or not array.size:
        raise ValueError(f"codes is {path}; want an array of integers (N, H, W), not empty")
    digest = hashlib.sha256(repr(array.shape).encode())
    for first in range(0, len(array), SHARD):
        digest.update(array[first : first + SHARD].tobytes())
    return Codes(
        len(array), digest.hexdigest()[:16], lambda rows: (unpack(array[rows.start : rows.stop]), None)
    )


def shards(num: int, ranks: Ranks) -> Iterator[range]:
    """The rows of each shard that is this process's: every world-th one."""
    for shard in range(-(-num // SHARD))[ranks.rank :: ranks.world]:
        yield range(shard * SHARD, min(num, (shard + 1) * SHARD))


def write_files(
    folder: Path,
    num: int,
    ranks: Ranks,
    label: str,
    names: Callable[[range], list[str]],
    make: Callable[[range, Tick], Iterable[bytes]],
) -> None:
    """Writes what ``make(rows, tick)`` yields for every shard of ``num`` items, as ``names(rows)``.

    A shard whose last file is there stays: so a killed run goes on where it was. What a file holds doesn't
    depend on which process makes it.
    """
    with bar(ranks, label, num, unit="img") as progress:
        for rows in shards(num, ranks):
            files = [folder / name for name in names(rows)]
            if files[-1].is_file():
                progress.update(len(rows) * ranks.world)
                continue
            for file, data in zip(files, make(rows, lambda n: progress.update(n * ranks.world)), strict=True):
                write_file(file, data)
    ranks.barrier()


def write_shards(
    folder: Path, num: int, ranks: Ranks, label: str, make: Callable[[range, Tick], dict[str, np.ndarray]]
) -> None:
    """The same, of arrays: ``00000.npz`` and so on."""

    def whole(rows: range, tick: Tick) -> Iterator[bytes]:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = make(rows, tick)
        np.savez(buffer, **arrays)
        yield buffer.getvalue()

    write_files(folder, num, ranks, label, lambda rows: [f"{rows.start // SHARD:05d}.npz"], whole)


def read_shards(folder: Path, num: int, rows: range) -> dict[str, np.ndarray]:
    """``rows`` of the ``num`` items, arrays of integers, that ``write_shards`` wrote.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged, or another's.
    """
    parts: list[dict[str, np.ndarray]] = []
    for shard in range(rows.start // SHARD, -(-rows.stop // SHARD)):
        first = shard * SHARD
        path = _existing_shard(folder, shard)
        try:
            arrays = _whole_arrays(path, min(num - first, SHARD))
            parts.append(
                {
                    name: array[max(0, rows.start - first) : rows.stop - first]
                    for name, array in arrays.items()
                }
            )
            forms = [{name: array.shape[1:] for name, array in part.items()} for part in parts]
            if forms[-1] != forms[0]:
                raise ValueError(f"its items have shapes {forms[-1]}; want {forms[0]} as in those before")
        except Exception as error:  # a damaged zip raises nearly anything
            raise ValueError(f"{path} is no whole shard: {error}") from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _existing_shard(folder: Path, shard: int) -> Path:
    path = folder / f"{shard:05d}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the codes aren't complete; encode or sample first")
    return path


def _whole_arrays(path: Path, num: int) -> dict[str, np.ndarray]:
    """The arrays of a shard, each of ``num`` items; they are stored as they are, so the file bounds them."""
    with open_file(path) as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
        archive = cast(zipfile.ZipFile, file.zip)
        if sum(member.file_size for member in archive.infolist()) > os.fstat(opened.fileno()).st_size:
            raise ValueError("its arrays are larger than the file")
        arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if array.dtype.kind not in "iu" or array.shape[:1] != (num,):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; want integers, {num} items")
    return arrays


def pack(codes: Tensor, num_embeddings: int) -> np.ndarray:
    """Codes in the smallest unsigned type that holds them."""
    return codes.cpu().numpy().astype(np.min_scalar_type(num_embeddings - 1))


def unpack(codes: np.ndarray) -> Tensor:
    """int64 codes."""
    return torch.from_numpy(codes.astype(np.int64))
