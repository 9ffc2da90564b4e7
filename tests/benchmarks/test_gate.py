"""The GPU gate and the sweep of tunings, as far as they run without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gate, gate_compile, gate_smoke, gate_steps, machine, sweep
from tests.benchmarks.miniature import gate_in_a_process
from vqfast.ops import library, records, registry
from vqfast.ops.modules import module
from vqfast.ops.nearest.tunings import Tuning
from vqfast.ops.residual import reference


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(capsys) -> None:
    assert command.main(["--gpu-gate"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A GPU that isn't there, and a clock that only items move."""
    about: dict[str, object] = {"device": "A GPU", "commit": "abc", "clock": 0.0}
    conditions = {"threads": 1, "versions": {"torch": "2.11.0"}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gate, "device", lambda: about["device"])
    monkeypatch.setattr(machine, "conditions", lambda: {"commit": about["commit"], **conditions})
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: about["clock"]))
    return about


def step_of(fake: dict[str, object], ran: list[str], *names: str, wrong: str = "", takes: float = 1.0):
    """A step whose items take seconds of the clock."""

    def item(name: str) -> gate.Item:
        def work(seconds: float) -> dict[str, object]:
            ran.append(name)
            fake["clock"] += takes
            if name == "raises":
                raise RuntimeError("out of resource")
            assert name != wrong, "codes differ"
            return {"passed": True}

        return gate.Item(name, work)

    return lambda: iter([item(name) for name in names])


def results(out: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((out / "gate.json").read_text())["steps"]


def test_next_goes_on_where_the_call_before_ran_out_of_time(fake, tmp_path: Path) -> None:
    ran: list[str] = []
    steps = {
        "smoke": step_of(fake, ran, "kernels"),
        "shapes": step_of(fake, ran, *"abcde", takes=200.0),
        "rest": step_of(fake, ran, "raises"),
    }
    for calls, expected in enumerate(("kernels", "abc", "de", "raises", ""), start=1):
        before, began = len(ran), fake["clock"]
        assert gate.main("next", tmp_path, steps=steps) == 0
        assert "".join(ran[before:]) == expected
        assert fake["clock"] - began <= 9 * 60 + 200, calls  # no item begins late; the last one may take long
    assert results(tmp_path)["rest"]["raises"]["failed"] == "RuntimeError: out of resource"
    assert len(ran) == len(set(ran))


def test_an_item_that_was_not_done_in_its_time_has_its_turn_again_after_the_others(
    fake, tmp_path: Path
) -> None:
    """Three times, if it had at least half of a call; the first time here it had less."""
    ran: list[str] = []

    def work(name: str, takes: float, seconds: float) -> dict[str, object]:
        ran.append(name)
        fake["clock"] += min(takes, seconds - 5)
        return {"passed": True} if takes < seconds else {"failed": "not done", "unfinished": True}

    times = {"a": 400.0, "long": 900.0, "b": 100.0}
    items = [gate.Item(name, partial(work, name, takes)) for name, takes in times.items()]
    steps = {"matrix": lambda: iter(items), "rest": step_of(fake, ran, "last")}
    for expected in (["a", "long"], ["b", "long"], ["long"], ["long"], ["last"], []):
        before = len(ran)
        assert gate.main("next", tmp_path, steps=steps) == 0
        assert ran[before:] == expected
    assert results(tmp_path)["matrix"]["long"]["failed"] == "not done"


@pytest.mark.parametrize(
    "under, seconds, again", [([], 500, True), (["time"], 500, False), (["time"], 50, True)]
)
def test_a_sanitizer_that_is_not_done_in_a_whole_call_is_not_run_again(
    monkeypatch, under, seconds, again
) -> None:
    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(subprocess, "run", late)
    assert gate_steps._command([*under, *gate_steps.SMOKE, "nearest"], seconds)["unfinished"] is again


def test_an_item_is_written_before_the_next_one_begins(fake, tmp_path: Path) -> None:
    def stop(seconds: float) -> dict[str, object]:
        assert list(results(tmp_path)["smoke"]) == ["first"]
        raise KeyboardInterrupt

    items = [gate.Item("first", lambda seconds: {}), gate.Item("second", stop)]
    with pytest.raises(KeyboardInterrupt):
        gate.main("1", tmp_path, steps={"smoke": lambda: iter(items)})
    assert list(results(tmp_path)["smoke"]) == ["first"]


@pytest.mark.parametrize("changed", ["device", "commit"])
def test_results_of_another_device_or_commit_are_set_aside(fake, tmp_path: Path, changed) -> None:
    ran: list[str] = []
    steps = {"smoke": step_of(fake, ran, "kernels")}
    gate.main("next", tmp_path, steps=steps)
    fake[changed] = "another"
    gate.main("next", tmp_path, steps=steps)
    assert ran == ["kernels"] * 2
    assert json.loads((tmp_path / "gate-0.json").read_text())["about"][changed] != "another"


def test_a_wrong_kernel_fails_the_gate_and_is_not_shipped(fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    steps = {
        "matrix nearest": step_of(fake, [], "nearest test_nearest.py"),
        "matrix residual": step_of(fake, [], "residual test_residual.py", wrong="residual test_residual.py"),
    }
    assert gate.main("all", tmp_path, steps=steps) == 1
    written = json.loads((tmp_path / "records" / "a-gpu.json").read_text())
    assert written["passed"] == {"triton": ["nearest"]}
    records._read.cache_clear()
    assert records.passed("nearest", "triton", "A GPU")
    assert not records.passed("residual", "triton", "A GPU")
    assert gate.main("smoke", tmp_path, steps=steps) == 2  # no such step


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
    path = tmp_path / "test_one.py"
    path.write_text(f"def {name}():\n    {body}\n")
    outcome = gate_steps.run_tests(path, 100.0)
    assert outcome["passed"] is bool(passed)
    assert ("test_it" in outcome.get("wrong", "")) is (passed is False)
    assert ("failed" in outcome) is (passed is None)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_smoke_step_compares_every_part_of_every_op(monkeypatch, capsys, wrong) -> None:
    """With the CPU's kernels in the place of the GPU's, and without the sampler, whose tunings they lack."""
    if reason := library.unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(gate_smoke, "GPU_BACKENDS", ("native",))
    monkeypatch.delitem(registry.TABLE, "sampler")
    if wrong:
        native = module("residual", "native")
        monkeypatch.setattr(native, "residual_codes", lambda *call: reference.residual_codes(*call) * 0)
    assert gate_smoke.main(registry.TABLE) == int(wrong)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("native")]
    assert len(said) == 6 and sum("WRONG" in line for line in said) == 2 * wrong


def test_every_gpu_kernel_has_a_matrix_whose_files_exist() -> None:
    ops = {op for op, supports in registry.TABLE.items() if "triton" in supports}
    assert {name.removeprefix("matrix ") for name in gate_steps.STEPS if name.startswith("matrix")} == ops
    assert all(path.is_file() for op in ops for path in gate_steps.files_of(op))


@pytest.mark.slow
def test_the_matrices_interpret_no_kernel(monkeypatch) -> None:
    """That takes a quarter of an hour, and fails where NumPy is newer than the interpreter allows."""
    asked: list[str] = []
    monkeypatch.setattr(
        gate_steps, "run_tests", lambda path, _, options: asked.extend([str(path), *options]) or {}
    )
    for item in gate_steps.matrix("sampler", "triton"):
        item.run(100.0)
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    numbers = []
    for options in (asked[:3], asked):
        done = subprocess.run([*collect, *options], cwd=machine.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        numbers.append(int(done.stdout.split()[-1]))
    assert numbers[0] - numbers[1] == 6 and numbers[1] > 20  # the interpreter's processes


@pytest.mark.slow
def test_the_gate_is_rehearsed_in_the_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--gpu-gate", "--step", "shapes", "--out", str(tmp_path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PATH": "/nowhere"}  # no git either
    done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gate.json").read_text())
    assert found["about"]["device"] == "Triton's interpreter"
    assert found["about"]["commit"].startswith("sources ")
    shapes = found["steps"]["shapes"]
    assert any("seconds" in result for name, result in shapes.items() if name.startswith("nearest"))
    assert all("failed" in result for name, result in shapes.items() if name.startswith("flash-kmeans"))


@pytest.mark.parametrize("item", ["layer: EMA", "degenerate: far", "residual memcheck"])
def test_an_op_that_is_wrong_in_a_suite_or_the_smoke_is_not_shipped(fake, tmp_path: Path, item) -> None:
    steps = {
        "smoke": step_of(fake, [], item, wrong=item),
        "matrix residual": step_of(fake, [], "residual test_residual.py"),
        "matrix masked_conv": step_of(fake, [], "masked_conv test_masked_conv.py"),
    }
    assert gate.main("all", tmp_path, steps=steps) == 1
    written = json.loads((tmp_path / "records" / "a-gpu.json").read_text())
    assert written["passed"] == {"triton": ["masked_conv"]}


def test_the_ops_of_each_suite_are_known() -> None:
    for name in gate_steps.SUITES:
        assert set(gate.ops_of(f"{name}: a case")) <= registry.TABLE.keys()


@pytest.mark.slow
def test_an_op_whose_smoke_is_wrong_is_not_shipped_though_its_tests_pass(tmp_path: Path) -> None:
    for step in ("smoke", "matrix nearest", "matrix residual"):
        assert gate_in_a_process(step, tmp_path, wrong="smoke") == 1
    assert results(tmp_path)["matrix nearest"]["nearest test_nearest.py"]["passed"]
    written = json.loads((tmp_path / "records" / "a-gpu.json").read_text())
    assert written["passed"] == {"triton": ["residual"]}


@pytest.mark.slow
@pytest.mark.parametrize("step", gate_steps.STEPS)
def test_each_step_goes_on_after_it_was_killed_inside_of_an_item(tmp_path: Path, step) -> None:
    several = step not in ("matrix sampler", "rest")  # where the item before has a result
    assert gate_in_a_process(step, tmp_path, killed_at=int(several)) == -signal.SIGKILL
    before = results(tmp_path)[step] if several else {}
    assert len(before) == several
    assert gate_in_a_process(step, tmp_path) == 0
    after = results(tmp_path)[step]
    assert len(after) > len(before) and before.items() <= after.items()
    assert not any("wrong" in found or "failed" in found for found in after.values())


@pytest.mark.parametrize("step", ["smoke", "matrix nearest", "shapes", "suites", "sweep", "rest"])
def test_a_step_fails_the_gate_only_if_a_kernel_is_wrong(tmp_path: Path, step) -> None:
    """A tuning that doesn't run, and a test that isn't of a kernel, are noted and no more."""
    assert gate_in_a_process(step, tmp_path, wrong=step) == (step not in ("sweep", "rest"))
    noted = json.dumps(results(tmp_path)[step])
    assert any(said in noted for said in ("wrong sums", "test_one", "wrong codes", "compared"))
    assert not (tmp_path / "records" / "a-gpu.json").exists() or step == "matrix nearest"


def test_every_line_of_the_tunings_is_swept_but_float64s(monkeypatch) -> None:
    pytest.importorskip("triton")
    from vqfast.ops.masked_conv.tunings import CONVOLVE, DOUBLE, WEIGHT
    from vqfast.ops.nearest.tunings import SEARCH
    from vqfast.sampling.executors.triton_tunings import SAMPLING

    monkeypatch.setattr(machine, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch, "randn", torch.empty)
    found = sweep.lines().values()
    tables = [table["sm_90"] for table in (SEARCH, CONVOLVE, WEIGHT, SAMPLING[2], SAMPLING[4])]
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


def test_a_sweep_that_is_out_of_time_is_unfinished(monkeypatch) -> None:
    monkeypatch.setattr(gate_compile, "ahead", lambda name, count, seconds: None)
    line = sweep.Line({64: Tuning(64, 64, 64, 4, 2)}, 64, lambda: time.sleep(0.01))
    whole, none = gate_steps._line(line, "search 64", 100.0), gate_steps._line(line, "search 64", 0.0)
    assert not whole["unfinished"] and len(whole["tunings"]) == len(list(sweep.neighbours(line.tunings[64])))
    assert none == {"tunings": [], "unfinished": True}


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
