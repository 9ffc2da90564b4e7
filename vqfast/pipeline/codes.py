"""Grids of codes that are read when they are needed: from a stage of a run, or from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.pipeline import shards
from vqfast.pipeline.levels import level_name
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import existing_shard, pack, read_shards, unpack, whole_arrays


@dataclass(frozen=True)
class CodeGrids:
    """Grids of codes that are read when they are needed.

    Args:
        num: how many.
        fingerprint: identifies them.
        read: numbers of items -> their codes, int64 ``(n, *shape)`` for each level from the coarsest, and
            int64 labels ``(n,)`` or None.
        actions: numbers of items -> of clips the actions of each grid, int64 ``(n, T)``, or None.
    """

    num: int
    fingerprint: str
    read: Callable[[range], tuple[list[Tensor], Tensor | None]]
    actions: Callable[[range], Tensor | None] = lambda numbers: None

    def all(self) -> tuple[list[Tensor], Tensor | None]:
        """All codes, ``(N, *shape)`` for each level, and labels ``(N,)`` or None."""
        return self.read(range(self.num))


def shard_of(
    levels: Sequence[Tensor],
    codebook_sizes: Sequence[int],
    labels: np.ndarray | None,
    actions: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a shard: ``indices``, ``indices-1`` and so on, a level each, any labels and actions."""
    shard = {
        level_name("indices", level): pack(grids, size)
        for level, (grids, size) in enumerate(zip(levels, codebook_sizes, strict=True))
    }
    if actions is not None:
        shard["actions"] = actions.numpy()
    return shard if labels is None else {**shard, "labels": labels}


def stage_codes(run: Run, stage: str) -> CodeGrids:
    """The codes that a stage of a run wrote.

    Args:
        stage: ``"samples"``, or ``"codes/train"`` and so on: ``"codes/"`` and the name of a part.

    Raises:
        FileNotFoundError: the stage hasn't been begun, or isn't finished.
        TypeError, ValueError: ``run.json`` has no sensible number of codes. ``read`` raises ValueError where
            a file is damaged or isn't a shard of codes.
    """
    settings, folder = run.settings(stage), run.folder / stage
    if settings is None:
        step = "sample" if stage == "samples" else "encode"
        raise FileNotFoundError(f"{run.folder} holds no {stage}: {step} first")
    num: Any = settings.get("num")
    check_integer(f"num of {stage} in {run.folder / 'run.json'}", num)
    existing_shard(folder, (num - 1) // shards.SHARD)

    def read(numbers: range) -> tuple[list[Tensor], Tensor | None]:
        return _grids(folder, read_shards(folder, num, numbers))

    def actions(numbers: range) -> Tensor | None:
        return _actions(folder, read_shards(folder, num, numbers))

    named = sorted((name, value) for name, value in settings.items() if name != "format")
    digest = hashlib.sha256(repr(named).encode()).hexdigest()[:16]
    return CodeGrids(num, digest, read, actions)


def open_codes(path: str | Path) -> CodeGrids:
    """The codes at a path.

    Args:
        path: a folder that ``encode`` or ``sample`` wrote, such as ``OUT/samples``; a file as those in it,
            ``.npz`` or ``.safetensors``; or a ``.npy`` file of integers ``(N, *shape)``, the codes of a
            single level.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: something else is there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/codes.npy", np.arange(12).reshape(2, 2, 3))
    ...     (indices,), labels = open_codes(f"{folder}/codes.npy").all()
    >>> indices.shape, labels
    (torch.Size([2, 2, 3]), None)
    """
    place = Path(path)
    if place.is_dir():
        folder = next((p for p in place.absolute().parents if (p / "run.json").is_file()), None)
        if folder is None:
            raise ValueError(
                f"codes is {path}; want a folder such as OUT/samples that sample or encode wrote, or a file"
            )
        return stage_codes(Run(folder, lock=False), place.absolute().relative_to(folder).as_posix())
    if not place.is_file():
        raise FileNotFoundError(f"codes is {path}; no such file or folder")
    if place.suffix in (".npz", ".safetensors"):
        return _file_codes(place)
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"codes is {path}, which is no whole .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim < 2 or not array.size:
        raise ValueError(f"codes is {path}; want an array of integers (N, *shape), not empty")
    digest = hashlib.sha256(repr(array.shape).encode())
    for first in range(0, len(array), shards.SHARD):
        digest.update(array[first : first + shards.SHARD].tobytes())

    def read(numbers: range) -> tuple[list[Tensor], None]:
        return [unpack(array[numbers.start : numbers.stop])], None

    return CodeGrids(len(array), digest.hexdigest()[:16], read)


def _file_codes(path: Path) -> CodeGrids:
    """The codes of a file with the arrays of a shard, of any number of items."""
    try:
        arrays = whole_arrays(path)
        (first, *_), _ = _grids(path, arrays)
        _actions(path, arrays)
        if not first.numel():
            raise ValueError("it has no codes")
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"codes is {path}, which is no whole file of codes: {error}") from error
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode() + unpack(arrays[name]).numpy().tobytes())

    def part(numbers: range) -> dict[str, np.ndarray]:
        return {name: array[numbers.start : numbers.stop] for name, array in arrays.items()}

    def read(numbers: range) -> tuple[list[Tensor], Tensor | None]:
        return _grids(path, part(numbers))

    def actions(numbers: range) -> Tensor | None:
        return _actions(path, part(numbers))

    return CodeGrids(len(first), digest.hexdigest()[:16], read, actions)


def _grids(place: Path, arrays: dict[str, np.ndarray]) -> tuple[list[Tensor], Tensor | None]:
    """The codes of each level and any labels, of the arrays of a shard.

    Raises:
        ValueError: they aren't those of codes.
    """
    ndims = {name: array.ndim for name, array in arrays.items()}
    others = ("labels", "rejected", "actions")  # see ``sample`` and ``_actions``
    names = [level_name("indices", level) for level in range(len(arrays.keys() - set(others)))]
    if not names or any(ndims.get(name, 0) < 2 for name in names) or ndims.get("labels", 1) != 1:
        wanted = "want indices (N, *shape), indices-1 and so on for finer levels, maybe labels (N,)"
        raise ValueError(f"{place} holds arrays of {ndims} dimensions; {wanted}")
    labels = arrays.get("labels")
    return [unpack(arrays[name]) for name in names], None if labels is None else unpack(labels)


def _actions(place: Path, arrays: dict[str, np.ndarray]) -> Tensor | None:
    found = arrays.get("actions")
    if found is not None and found.ndim != 2:
        raise ValueError(f"{place} has actions of {found.ndim} dimensions; want (N, T)")
    return None if found is None else unpack(found)
