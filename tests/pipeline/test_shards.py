"""Codes on disk: whole, in shards, and refused by name where they are damaged or another's."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqfast.pipeline import Ranks, Run, shards, stage_codes
from vqfast.pipeline.ranks import ALONE
from vqfast.pipeline.shards import Advance, pack, read_shards, unpack, write_shards

NAMES = {"label": "", "item": ""}


@pytest.mark.parametrize(("num", "count"), [(1, 1), (8, 1), (9, 2), (21, 3)])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int, count: int, world: int) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    made: list[int] = []

    def make(numbers: range, advance: Advance) -> dict[str, np.ndarray]:
        made.extend(numbers)
        advance(len(numbers))
        return {"indices": np.array(numbers), "squares": np.array(numbers) ** 2}

    for rank in range(world):
        ranks = Ranks(rank, world)
        monkeypatch.setattr(Ranks, "barrier", lambda self: None)
        write_shards(tmp_path / "codes", num, ranks, make=make, **NAMES)
    assert sorted(made) == list(range(num))  # each once
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == [f"{i:05d}.npz" for i in range(count)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_shards(tmp_path / "codes", num, ALONE, make=make, **NAMES)
    assert len(made) == num
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    found = read_shards(tmp_path / "codes", num, range(num))
    assert found["indices"].tolist() == list(range(num)) and found["squares"][-1] == (num - 1) ** 2
    for numbers in (range(num // 2, num), range(num // 3, num // 3 + 1), range(min(7, num - 1), min(9, num))):
        assert read_shards(tmp_path / "codes", num, numbers)["indices"].tolist() == list(numbers)


def test_damaged_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    write_shards(tmp_path, 20, ALONE, make=lambda numbers, _: {"indices": np.array(numbers)}, **NAMES)
    middle = tmp_path / "00001.npz"
    whole = middle.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"x" * 300, whole[:60] + b"xxxx" + whole[64:]):
        middle.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00001\.npz is no whole shard"):
            read_shards(tmp_path, 20, range(20))
    np.savez(middle, indices=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"no whole shard.*pickle"):
        read_shards(tmp_path, 20, range(20))
    middle.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.npz is missing: the codes aren't complete"):
        read_shards(tmp_path, 20, range(20))


FOREIGN: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "short": (
        {"indices": np.zeros((2, 2, 3), int)},
        r"indices is int64 of shape \(2, 2, 3\); want integers, 8 ",
    ),
    "long": ({"indices": np.zeros((9, 2, 3), int)}, "want integers, 8 items"),
    "floats": ({"indices": np.zeros((8, 2, 3))}, "indices is float64"),
    "bools": ({"indices": np.zeros((8, 2, 3), bool)}, "indices is bool"),
    "a scalar": ({"indices": np.array(3)}, r"shape \(\); want"),
    "another grid": ({"indices": np.zeros((8, 3, 2), int)}, r"have shapes .*\(3, 2\).*; want .*\(2, 3\)"),
    "without codes": ({"labels": np.zeros(8, int)}, "have shapes"),
    "with labels": ({"indices": np.zeros((8, 2, 3), int), "labels": np.zeros(8, int)}, "have shapes"),
    "empty": ({}, "have shapes"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)

    def zeros(numbers: range, advance: Advance) -> dict[str, np.ndarray]:
        return {"indices": np.zeros((len(numbers), 2, 3), int)}

    write_shards(tmp_path, 20, ALONE, make=zeros, **NAMES)
    arrays, message = FOREIGN[kind]
    np.savez(tmp_path / "00001.npz", **arrays)
    with pytest.raises(ValueError, match=rf"00001\.npz is no whole shard: .*{message}"):
        read_shards(tmp_path, 20, range(20))


def test_shards_are_bounded_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed array, and one that claims to be larger than the file: nothing is allocated."""
    np.savez_compressed(tmp_path / "00000.npz", indices=np.zeros((8, 1000, 1000), np.uint8))
    with pytest.raises(ValueError, match="its arrays are larger than the file"):
        read_shards(tmp_path, 8, range(8))
    whole = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        whole, {"descr": "|u1", "fortran_order": False, "shape": (8, 10**6, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "00000.npz", "w") as file:
        file.writestr("indices.npy", whole.getvalue())
    with pytest.raises(ValueError, match=r"00000\.npz is no whole shard"):
        read_shards(tmp_path, 8, range(8))
    (tmp_path / "00000.npz").unlink()
    os.mkfifo(tmp_path / "00000.npz")
    with pytest.raises(FileNotFoundError, match=r"00000\.npz is missing"):
        read_shards(tmp_path, 8, range(8))


@pytest.mark.parametrize("num", [-5, 0, "15", 15.0, True, None, [], 10**30])
def test_a_wrong_number_of_codes(tmp_path: Path, num: Any) -> None:
    run = Run(tmp_path, create=True)
    run.begin("samples", {"num": num})
    with pytest.raises((TypeError, ValueError), match=r"num of samples in .*run\.json is .*; want a"):
        stage_codes(run, "samples")
    run.begin("samples", {"num": 10**9})
    with pytest.raises(FileNotFoundError, match=r"976562\.npz is missing: the codes aren't complete"):
        stage_codes(run, "samples")


@pytest.mark.parametrize(
    ("num_embeddings", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_codes_take_the_smallest_type(num_embeddings: int, dtype: str) -> None:
    codes = torch.tensor([[0, num_embeddings - 1]])
    assert pack(codes, num_embeddings).dtype == dtype
    assert torch.equal(unpack(pack(codes, num_embeddings)), codes)
