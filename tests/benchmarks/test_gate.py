"""The GPU gate and the sweep of tunings, as far as they run without a GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gate, machine, sweep
from vqfast.ops import records, registry
from vqfast.ops.nearest.tunings import Tuning


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(capsys) -> None:
    assert command.main(["--gpu-gate"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [None, "test_residual.py"])
def test_gate_tests_every_gpu_kernel_and_records_what_passed(tmp_path: Path, monkeypatch, fails) -> None:
    def run_tests(files: list[str], *options: str) -> dict[str, object]:
        return {"passed": fails is None or fails not in files[0], "summary": " ".join(options), "failed": []}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "name", lambda: "a GPU")
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(gate, "run_tests", run_tests)
    monkeypatch.setattr(sweep, "lines", dict)
    where = tmp_path / "a-gpu.json"
    where.write_text(json.dumps({"device": "a GPU", "suites": {}}))
    assert gate.main(lambda: where) == (0 if fails is None else 1)
    matrices = json.loads(where.read_text())["gate"]["matrices"]
    ops = {op for op, supports in registry.TABLE.items() if "triton" in supports}
    assert matrices["triton"].keys() == ops
    shipped = json.loads((tmp_path / "records" / "a-gpu.json").read_text())["passed"]["triton"]
    assert ("residual" in shipped) is (fails is None)
    assert "nearest" in shipped


def test_ops_that_passed_are_written_for_the_registry(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(machine, "name", lambda: "NVIDIA H100 80GB HBM3")
    outcomes = {"nearest": {"passed": True}, "residual": {"passed": False}}
    written = gate.ship({"triton": outcomes})
    assert written.name == "nvidia-h100-80gb-hbm3.json"
    assert json.loads(written.read_text())["passed"] == {"triton": ["nearest"]}
    records._read.cache_clear()
    assert records.passed("nearest", "triton", "NVIDIA H100 80GB HBM3")
    assert not records.passed("residual", "triton", "NVIDIA H100 80GB HBM3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "body, passed", [("assert True", True), ("assert False, 'too bad'", False), ("pass # none", None)]
)
@pytest.mark.parametrize("where", ["", "1"], ids=["desk", "CI"])  # pytest's summary differs
def test_tests_pass_only_if_some_ran_and_none_failed(
    tmp_path: Path, monkeypatch, body, passed, where
) -> None:
    monkeypatch.setenv("CI", where)
    name = "helper" if passed is None else "test_it"
    (tmp_path / "test_one.py").write_text(f"def {name}():\n    {body}\n")
    outcome = gate.run_tests([str(tmp_path)])
    assert outcome["passed"] is bool(passed)
    failed = [line.partition(" - ")[0].rpartition("::")[2] for line in outcome["failed"]]
    assert failed == ["test_it"] * (passed is False)


def test_matrix_files_exist() -> None:
    assert all(Path(name).is_file() for op in registry.TABLE for name in gate.files_of(op))


def test_every_line_of_the_tunings_is_swept_but_float64s(monkeypatch) -> None:
    pytest.importorskip("triton")
    from vqfast.ops.masked_conv.tunings import CONVOLVE, DOUBLE, WEIGHT
    from vqfast.ops.nearest.tunings import RECHECK, SEARCH
    from vqfast.sampling.executors.triton_tunings import SAMPLING

    monkeypatch.setattr(machine, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch, "randn", torch.empty)
    found = sweep.lines().values()
    tables = [table["sm_90"] for table in (SEARCH, RECHECK, CONVOLVE, WEIGHT, SAMPLING[2], SAMPLING[4])]
    lines = {(id(table), key) for table in tables for key in table if key != DOUBLE}
    assert {(id(line.tunings), line.key) for line in found} == lines
    assert all(len(list(sweep.neighbours(line.tunings[line.key]))) > 5 for line in found)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_a_convolution_is_swept_in_its_arithmetic_and_pytorchs_comes_back(precision) -> None:
    pytest.importorskip("triton")
    from vqfast.ops.masked_conv.triton import arithmetic

    before = torch.backends.cudnn.conv.fp32_precision
    assert sweep.with_precision(precision, lambda: arithmetic(torch.zeros(1))) == precision
    assert torch.backends.cudnn.conv.fp32_precision == before
    with pytest.raises(ZeroDivisionError):
        sweep.with_precision(precision, lambda: 1 / 0)
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_neighbours_of_a_line_of_launches_change_one_size_of_one_of_them() -> None:
    from vqfast.sampling.executors.triton_tunings import Launch, Tuning

    alone, shared = Launch(1, 1, 1, 16, 32, 4, 1), Launch(16, 8, 64, 64, 64, 4, 3)
    line, *others = sweep.neighbours(Tuning(alone, shared))
    assert line == Tuning(alone, shared)
    assert Tuning(alone._replace(depth=16), shared) in others
    assert Tuning(alone, shared._replace(members=16)) in others
    for other in others:
        (one,) = [(old, new) for old, new in zip(line, other, strict=True) if old != new]
        assert sum(old != new for old, new in zip(*one, strict=True)) == 1
        assert other.row.members == 1  # blocks that work alone
        assert other.row.columns >= 16


def test_sweep_times_each_neighbour_in_its_place_and_puts_the_line_back() -> None:
    line = Tuning(128, 64, 64, 4, 1)
    tunings = {64: line}

    def call() -> None:
        tuning = tunings[64]
        if tuning.vectors == 256:
            raise RuntimeError("out of resource")
        time.sleep(0.02 if tuning.warps != 8 else 0.001)

    found = sweep.time_neighbours(sweep.Line(tunings, 64, call))
    assert tunings == {64: line}
    changed = [{k: v for k, v in each.items() if getattr(line, k, v) != v} for each in found]
    others = [
        {"vectors": 64},
        {"vectors": 256},
        {"codes": 32},
        {"codes": 128},
        {"channels": 32},
        {"channels": 128},
        {"warps": 2},
        {"warps": 8},
    ]
    assert changed == [{}, *others, {"stages": 2}]
    assert found[2]["failed"] == "RuntimeError: out of resource"
    fastest = min((each for each in found if "seconds" in each), key=lambda each: each["seconds"])
    assert fastest["warps"] == 8
