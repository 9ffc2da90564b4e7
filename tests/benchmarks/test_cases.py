"""The benchmarks' cases in small: all contenders are right, and a wrong one is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import (
    accelerate,
    core,
    degenerate,
    end_to_end,
    first_result,
    layer,
    machine,
    masked_conv,
    nearest,
    prior_training,
    residual_vq,
    sampling,
    waveform,
)
from benchmarks.core import AbsentError, Case

pytestmark = pytest.mark.filterwarnings("ignore")  # peers have warnings of their own
LAYER = partial(accelerate.layer, "ResidualVQ", (2, 9, 8), 16)
TRAIN, TOKENISE, SAMPLE = end_to_end.cases(4, 16, 8)
CASES = {
    "nearest": nearest.search(300, 17, 5),
    "degenerate": degenerate.search(300, 17, 5, "every ninth code far away"),
    "layer": layer.by_gradient((2, 8, 4, 4), 16),
    "EMA layer": layer.by_average((2, 8, 4, 4), 16),
    "residual VQ": residual_vq.residual("training", 2, 9, (3, 16, 8), True),
    "residual VQ, encode": residual_vq.residual("encode", 2, 9, (3, 16, 8), False),
    "masked conv": masked_conv.conv(3, "A", True, batch=2, channels=4, side=5),
    "masked conv, backward": masked_conv.conv(3, "B", backward=True, batch=2, channels=4, side=5),
    "gated prior": prior_training.gated(16, 8, 2, (2, 5, 5)),
    "Keras prior": prior_training.keras(16, 8, (2, 5, 5)),
    "sampling": sampling.gated(8, 2, 4, 2),
    "sampling by program_of": sampling.traced(8, 2, 4, 2),
    "waveform": waveform.waveform(2, 20, 8, 2),
    "accelerate": accelerate.cases("ResidualVQ", LAYER)[0],
    "train an epoch": TRAIN,
    "tokenise": TOKENISE,
    "sample and decode": SAMPLE,
}


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "peak", lambda: machine.Peak(1e9, 1e8, "made up"))


def without_compiled(case: Case) -> Case:
    """The case without its compiled contender, which takes many seconds."""
    return replace(case, contenders={n: build for n, build in case.contenders.items() if n != "compiled"})


def spoilt(output):
    """A wrong output: NaN in place of numbers, other indices in place of indices."""
    if isinstance(output, tuple):
        return tuple(map(spoilt, output))
    if output is None or output.is_floating_point():
        return None if output is None else output * torch.nan
    return (output + 1) % (output.amax() + 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_contenders_are_right_and_every_round_of_each_is_kept(case) -> None:
    try:
        row = core.measure(without_compiled(case), rounds=2)
    except AbsentError as error:
        pytest.skip(str(error))
    assert "vqfast" in row["seconds"]
    assert all(len(samples) == 2 and min(samples) > 0 for samples in row["seconds"].values())
    assert row["seconds"].keys() == row["memory"].keys()
    assert not row["seconds"].keys() & row["absent"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_spoilt_contender_is_not_timed(case) -> None:
    build = case.contenders["vqfast"]

    def wrong():
        call = build()
        return lambda data: spoilt(call(data))

    try:
        row = core.measure(replace(case, contenders={"vqfast": build, "spoilt": wrong}), rounds=1)
    except AbsentError as error:
        pytest.skip(str(error))
    assert row["wrong"].keys() == {"spoilt"}
    assert "spoilt" not in row["seconds"]
    with pytest.raises(AssertionError):  # where vqfast is wrong, the case fails
        core.measure(replace(case, contenders={"vqfast": wrong, "right": build}), rounds=1)


@pytest.mark.slow
def test_without_a_compiler_a_matrix_product_is_the_peak(monkeypatch) -> None:
    def nowhere():
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(machine, "find_compiler", nowhere)
    peak = machine.peak()
    assert peak.how.startswith("a product of 2048")
    assert peak.flops > 1e8


def fake(**options) -> Case:
    given = {
        "name": "fake",
        "shape": {"N": 1},
        "contenders": {"vqfast": lambda: lambda data: data},
        "data": lambda: torch.rand(1),
        "check": lambda data, outputs: None,
    }
    return Case(**given | options)


def test_rounds_are_interleaved_on_the_same_new_data() -> None:
    seen = []

    def build(name):
        def call(data):
            seen.append((name, data.item()))
            torch.ones(2**20).cos()  # long enough not to be repeated

        return lambda: call

    core.measure(fake(contenders={"vqfast": build("a"), "peer": build("b")}), rounds=3)
    rounds = list(dict.fromkeys(seen))[-6:]
    assert [name for name, _ in rounds] == ["a", "b", "b", "a", "a", "b"]  # each first in turn
    assert rounds[0][1] == rounds[1][1] != rounds[2][1] == rounds[3][1]


def test_absent_peers_say_why_and_slow_ones_are_for_the_full_form() -> None:
    def cannot():
        raise AbsentError("runs on a GPU only")

    def not_installed():
        import no_such_package  # noqa: F401

    contenders = {"vqfast": lambda: lambda data: data, "cannot": cannot, "not installed": not_installed}
    case = fake(contenders=contenders | {"compiled": contenders["vqfast"]}, slow=["compiled"])
    row = core.measure(case, 1, full=False)
    assert row["absent"] == {
        "cannot": "runs on a GPU only",
        "not installed": "No module named 'no_such_package'",
        "compiled": "only in the full form",
    }
    assert "compiled" in core.measure(case, 1)["seconds"]
    unneeded = {"vqfast": contenders["vqfast"], "peer": lambda: pytest.fail("built for nothing")}
    with pytest.raises(AbsentError, match="full form"):
        core.measure(fake(contenders=unneeded, slow=["vqfast"]), 1, full=False)


def test_a_peer_that_fails_is_absent_and_if_vqfast_fails_so_does_the_case() -> None:
    def fails():
        def call(data):
            raise RuntimeError("no compiler\nand much more")

        return call

    works = fake().contenders["vqfast"]
    row = core.measure(fake(contenders={"vqfast": works, "peer": fails}), 1)
    assert row["absent"] == {"peer": "RuntimeError: no compiler"}
    assert row["seconds"].keys() == {"vqfast"}
    with pytest.raises(RuntimeError, match="no compiler"):
        core.measure(fake(contenders={"vqfast": fails, "peer": works}), 1)


def test_part_of_the_work_is_scaled_and_short_calls_are_means(monkeypatch) -> None:
    row = core.measure(fake(contenders={"vqfast": lambda: time_of(0.01)}, parts={"vqfast": 0.1}), 1)
    assert row["seconds"]["vqfast"][0] > 0.1
    calls = []
    monkeypatch.setattr(core, "MEASURABLE", 0.2)  # longer than a busy machine makes a call
    row = core.measure(fake(contenders={"vqfast": lambda: lambda _: calls.append(time.sleep(1e-5))}), 1)
    assert len(calls) > 4
    assert row["seconds"]["vqfast"][0] < 0.05


def test_a_long_call_is_not_repeated_to_find_out_how_long_it_is() -> None:
    calls = []

    def build():
        return lambda _: calls.append(time.sleep(2 * core.LONG))

    core.measure(fake(contenders={"vqfast": build}), rounds=1)
    assert len(calls) == 3  # its output, its memory and a round


def test_the_first_rows_of_a_loop_are_checked_with_their_part_of_the_map() -> None:
    case = waveform.waveform(8, 4 * sampling.CACHED, 8, 2)
    # One position of four of the eight streams.
    assert case.parts == {"cached": 1 / 4, "naive": 1 / (4 * sampling.CACHED) * 4 / 8}
    seed = case.data()
    torch.manual_seed(0)
    codes = case.contenders["cached"]()(seed)
    assert codes.shape == (8, sampling.CACHED)
    case.check(seed, {"cached": codes})
    with pytest.raises(AssertionError, match="cached"):
        case.check(seed, {"cached": (codes + 1) % 256})


def time_of(seconds: float):
    return lambda _: time.sleep(seconds)


def test_the_slower_of_operations_and_bytes_is_the_floor() -> None:
    floors = [core.Floor(2e9, 1e6), core.Floor(1e6, 3e8)]
    rows = [core.measure(fake(floor=floor), 1)["floor"]["seconds"] for floor in floors]
    assert rows == [2.0, 3.0]


def test_weights_are_read_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "reading", lambda size: 1e9)
    few, many = core.Weights(5e8, 10**9, 3.0), core.Weights(5e8, 10**6, 1.0)
    floor = core.measure(fake(floor=core.Floor(1e9, weights=(few, many))), 1)["floor"]
    assert (floor["products"], floor["seconds"]) == (1.0, 3.5)


def test_small_caches_are_read_faster_than_memory() -> None:
    assert machine.reading(2**16) > machine.reading(2**28) > 1e8


def test_the_operations_of_products_convolutions_and_distances_are_counted() -> None:
    x, codes, kernel = torch.randn(40, 6), torch.randn(30, 6), torch.ones(3, 6, 3, 3)
    product, convolution = 2 * 40 * 30 * 6, 2 * (3 * 6) * 3 * 6 * 3 * 3
    assert core.counted(lambda: lambda x: x @ codes.T, x).flop == product
    assert core.counted(lambda: lambda x: torch.cdist(x, codes), x).flop == product
    assert core.counted(lambda: lambda x: torch.conv2d(x.view(1, 6, 5, 8), kernel), x).flop == convolution


def test_memory_is_what_a_call_adds() -> None:
    if machine.added_memory(lambda: None) is None:
        pytest.skip("the system doesn't tell")
    keep = torch.ones(2**22)
    added = machine.added_memory(lambda: torch.ones(2**23) + 1)  # 32 MB, twice
    assert 60e6 < added < 75e6
    assert machine.added_memory(lambda: keep.sum()) < 5e6


@pytest.mark.slow
def test_first_result_comes_from_a_process_of_its_own() -> None:
    case = first_result.first(False, ("eager",))
    calls, _ = core.built(case)
    outputs = {"eager": calls["eager"](None)}
    case.check(None, outputs)
    with pytest.raises(AssertionError, match="eager prints"):
        case.check(None, {"eager": "[1, 0]\n"})


@pytest.mark.slow
def test_pytest_benchmark_runs_the_same_cases() -> None:
    pytest.importorskip("pytest_benchmark")
    chosen = "nearest and 8 and eager and (64 and 1024) and not 512 and not 8192 and not 262144 and not 256"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-k", chosen, "-p", "no:cacheprovider"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nearest: N 64, K 1024, D 8: eager" in done.stdout
