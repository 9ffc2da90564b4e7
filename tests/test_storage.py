"""JSON and safetensors files, good and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vqfast.saving.storage import read_json, read_tensors, write_json, write_tensors


def test_json(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, 0.1 + 0.2, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert len((tmp_path / "x.json").read_text().splitlines()) > 3


NO_JSON = {
    "empty": b"",
    "cut": b'{"a": 1',
    "no text": b"\xff\xfe",
    "a zip": b"PK\x03\x04",
    "nested lists": b"[" * 100_000,
    "nested for a recursion": b'{"a":' * 900 + b"1" + b"}" * 900,
    "nested a bit": b'{"a":' * 20 + b"1" + b"}" * 20,
    "a key twice": b'{"a": 1, "a": 2}',
    "a long number": b"9" * 5000,
    "large": b"[" + b"0," * (16 << 20) + b"0]",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json (is no JSON file|has \d+ bytes; want)"):
        read_json(tmp_path / "x.json")


def test_tensors(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "transposed": torch.arange(6).view(2, 3).T,
        "grad": torch.randn(3, requires_grad=True),
        "none": torch.empty(0, 2),
        "half": torch.randn(2).bfloat16(),
    }
    write_tensors(tmp_path / "x", tensors)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


@pytest.mark.parametrize("length", [0, 1, 8, 20, -1])
def test_truncated_tensors(tmp_path: Path, length: int) -> None:
    write_tensors(tmp_path / "x", {"a": torch.randn(10)})
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:length])
    with pytest.raises(ValueError, match="x is no whole safetensors file"):
        read_tensors(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "y")
