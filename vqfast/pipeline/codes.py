"""Codes on disk: shards that a killed run goes on from, and that several processes share."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqfast.pipeline.checkpoint import write_file
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks

SHARD = 1024  # items a shard

Tick = Callable[[float], object]  # is told how many more items are done


def write_shards(
    folder: Path, num: int, ranks: Ranks, label: str, make: Callable[[range, Tick], dict[str, np.ndarray]]
) -> None:
    """Writes ``make(rows, tick)`` of every shard of ``num`` items to ``folder/00000.npz`` and so on.

    A shard that is there stays: so a killed run goes on where it was. Each process takes every world-th one,
    and what a shard holds doesn't depend on which.
    """
    shards = range(-(-num // SHARD))[ranks.rank :: ranks.world]
    with bar(ranks, label, num, unit="img") as progress:
        for shard in shards:
            rows = range(shard * SHARD, min(num, (shard + 1) * SHARD))
            path = folder / f"{shard:05d}.npz"
            if path.is_file():
                progress.update(len(rows) * ranks.world)
                continue
            buffer = io.BytesIO()
            np.savez(buffer, **make(rows, lambda items: progress.update(items * ranks.world)))
            write_file(path, buffer.getvalue())
    ranks.barrier()


def read_shards(folder: Path, num: int) -> dict[str, np.ndarray]:
    """What ``write_shards`` wrote, joined.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged.
    """
    parts: list[dict[str, np.ndarray]] = []
    for shard in range(-(-num // SHARD)):
        path = folder / f"{shard:05d}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the codes aren't complete; encode first")
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                parts.append({name: file[name] for name in file.files})
        except Exception as error:  # a damaged zip raises nearly anything
            raise ValueError(f"{path} is no whole shard: {error}") from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pack(codes: Tensor, num_embeddings: int) -> np.ndarray:
    """Codes in the smallest unsigned type that holds them."""
    return codes.cpu().numpy().astype(np.min_scalar_type(num_embeddings - 1))


def unpack(codes: np.ndarray) -> Tensor:
    """int64 codes."""
    return torch.from_numpy(codes.astype(np.int64))
