"""Shipped records decide what runs on a GPU: here one that is made up, on a device that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vqfast.ops import probe, records, registry

DEVICE = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def tensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Looks like one on a GPU whose record is to be written to ``tmp_path``."""
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: DEVICE)
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)

    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float32

    return OnGpu()


def write(folder: Path, **passed: list[str]) -> None:
    (folder / "h100.json").write_text(json.dumps({"device": DEVICE, "passed": passed}))
    records._read.cache_clear()


def test_ops_that_the_record_lists_have_passed_there_and_nothing_else(tensor, tmp_path) -> None:
    write(tmp_path, triton=["nearest"], native=[])
    assert records.passed("nearest", "triton", DEVICE)
    assert not records.passed("residual", "triton", DEVICE)
    assert not records.passed("nearest", "native", DEVICE)
    assert not records.passed("nearest", "triton", "NVIDIA A100")


def test_no_records_is_nothing_passed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path / "none")
    assert not records.passed("nearest", "triton", DEVICE)


def test_shipped_records_name_ops_and_backends_that_exist() -> None:
    for ops in (found for device in records._read(records.FOLDER).values() for found in device.items()):
        assert ops[0] in registry.BACKENDS
        assert set(ops[1]) <= registry.TABLE.keys()


def test_recorded_op_is_not_probed_and_any_other_is(tensor, tmp_path, monkeypatch) -> None:
    write(tmp_path, triton=["nearest"])
    probed = []
    monkeypatch.setattr(probe, "verdict", lambda op, *_: probed.append(op))
    for op in ("nearest", "residual", "sampler"):
        probe.failure(op, "triton", tensor, 8, lambda: None)
    assert probed == ["residual", "sampler"]
    write(tmp_path, triton=["sampler"])
    probe.failure("sampler", "triton", tensor, 1, lambda: None)
    assert probed == ["residual", "sampler"]


def test_info_can_say_what_a_record_shows(tensor, tmp_path) -> None:
    def said(backend: str) -> str:
        return registry.record_of("nearest", backend, tensor.device)

    write(tmp_path)
    assert said("triton") == f"no record of triton nearest on {DEVICE}: compared with the reference first"
    assert said("reference") == ""
    assert registry.record_of("nearest", "triton", torch.device("cpu")) == ""
    write(tmp_path, triton=["nearest"])
    assert said("triton") == "a record shows that it passed"
