"""A command as a process: info, errors that are bugs, interruptions, streams, terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.command import PRIOR, TRAIN, refused, run, without_data
from vqfast.ops import registry
from vqfast.pipeline import loop

VQFAST = [sys.executable, "-m", "vqfast"]
INTERRUPTED = "vqfast: interrupted; the same command goes on from here\n"


def test_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    assert run("info") == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    found = {tuple(line[:3]): line[3] for line in lines if line[0] in ("cpu", "cuda")}
    probe = torch.empty(0)
    for op in registry.TABLE:
        for backend in registry.BACKENDS:
            assert found["cpu", op, backend] == (registry.refusal(op, backend, probe) or "runs")
        assert found["cpu", op, "reference"] == "runs"
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    assert run("info") == 0
    assert "VQFAST_BACKEND: reference" in capsys.readouterr().out


def test_an_unknown_backend(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "nonsense")
    for command in (f"{TRAIN} new", "encode --run begun"):
        refused(command, "VQFAST_BACKEND is 'nonsense'; want 'native', 'triton', 'torch' or", capsys)
    assert run("info") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interruption_that_becomes_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does where it looks into a tensor
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main changes it
    monkeypatch.setattr("vqfast.cli.commands.info", command)
    assert run("info") == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_waits_for_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C++ that imports Python modules ends the process with SIGABRT where they raise."""
    (tmp_path / "imported_late.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main changes it

    def command() -> None:
        import imported_late

        assert imported_late.whole == 1
        time.sleep(60)
        raise AssertionError("the interruption got lost")

    monkeypatch.setattr("vqfast.cli.commands.info", command)
    began = time.monotonic()
    assert run("info") == 130 and time.monotonic() - began < 50
    assert capsys.readouterr().err == INTERRUPTED


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug"), SystemExit(3)])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr("vqfast.cli.commands.info", command)
    with pytest.raises(type(error)):
        run("info")


def started(*command: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*VQFAST, *command], cwd=cwd, env=environment, text=True, **pipes)


@pytest.mark.slow
def test_ctrl_c(here: Path) -> None:
    with started(*TRAIN.split(), "new", "--steps", "1000000", cwd=here) as process:
        while not (here / "new" / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    # a shell calls both 130; which one depends on what Python was at (an exec of a string remembers)
    assert process.returncode in (130, -signal.SIGINT)
    # a fast machine has come to its first estimate, a slow one hasn't
    said = [line for line in without_data(err).splitlines(keepends=True) if "steps are left" not in line]
    assert (out, said) == ("", [INTERRUPTED])
    assert not list(here.rglob("*.tmp"))


def test_ctrl_c_loses_no_step(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The running step is saved, and the same command ends with the bytes of an undisturbed one."""

    batch_numbers = loop.batch_numbers

    def interrupted(num: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
        if step == 5:
            signal.raise_signal(signal.SIGINT)
        return batch_numbers(num, batch_size, step, seed)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main changes it
    for command, folder, whole in (
        (f"{TRAIN} new", "new/vqvae", "begun/vqvae"),
        (f"train-prior --run coded {PRIOR}", "coded/prior", "whole/prior"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "batch_numbers", interrupted)
            assert run(command) == 130
        assert without_data(capsys.readouterr().err) == INTERRUPTED
        state = load_file(here / f"{folder}.state.safetensors")
        assert bytes(state["progress"].tolist()).startswith(b'{"step": 6,')
        assert run(command) == 0
        for end in ("safetensors", "history.json", "png"):
            assert (here / f"{folder}.{end}").read_bytes() == (here / f"{whole}.{end}").read_bytes()


@pytest.mark.slow
def test_status_and_streams_of_a_process(here: Path) -> None:
    with started(*TRAIN.split(), "new", "--lr", "0", cwd=here) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert without_data(err) == "vqfast: error: lr is 0.0; want a finite number, above 0\n"
    with started("info", cwd=here) as process:
        process.stdout.close()  # as `head` does when it has seen enough
        assert process.wait(300) == 1 and process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_folders_of_any_name(here: Path, encoding: str) -> None:
    """A name that isn't UTF-8, and one that the terminal can't show: all is done and said."""
    name = os.fsdecode(b"r\xff") if encoding == "utf-8" else "é"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding}
    command = [*VQFAST, *TRAIN.split(), name]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, timeout=300)
    shown = name.encode(encoding, "backslashreplace")
    assert (done.returncode, without_data(done.stderr.decode())) == (0, "")
    assert done.stdout == b"trained %s/vqvae.safetensors; see %s/report.html\n" % (shown, shown)
    weights = [here / folder / "vqvae.safetensors" for folder in (name, "begun")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_progress_bars_show_on_a_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:  # how a terminal that hangs up ends on Linux
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        for command in (
            f"{TRAIN} new",
            "encode --run new",
            f"train-prior --run new {PRIOR}",
            "sample --run new --out s --num 2",
        ):
            assert run(command) == 0
    reader.join(10)
    os.close(ours)
    text = b"".join(shown).decode()
    for label in (
        "VQ-VAE: 100%",
        "encode train: 100%",
        "encode held-out: 100%",
        "prior: 100%",
        "sample: 100%",
    ):
        assert label in text
    assert "loss=" in text and "bits_per_code=" in text
    assert "%" not in capsys.readouterr().out
