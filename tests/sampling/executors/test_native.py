"""What only the native executor has: threads, tiles and blocks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sampling.programs import TWO_STREAMS, Programmed
from vqfast.ops import library, registry
from vqfast.priors import PixelCNN, PixelSNAIL, WaveNet
from vqfast.priors.base import CausalPrior
from vqfast.sampling import batches
from vqfast.sampling.executors import native
from vqfast.sampling.program import CODES, CONDITION, Phase, Step, Term
from vqfast.sampling.wavefront import wavefront

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason="no native library here")
MakePrior = Callable[..., CausalPrior]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 17, 67])
def test_any_number_of_threads_draws_the_same(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, kind: str, threads: int, batch: int
) -> None:
    monkeypatch.setattr(native, "_PRODUCTS", 1)  # small steps are split too
    monkeypatch.setattr(native, "_busy", lambda: False)
    prior = make_prior(kind, num_classes=3)
    shape = (3, 4) if prior.ndim == 2 else (12,)
    options = {"labels": torch.arange(batch) % 3, "top_p": 0.9}
    expected = prior.sample(batch, shape, method="torch", **options)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(prior.sample(batch, shape, method="native", **options), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("channels", [7, 16, 17, 33, 40])
@pytest.mark.parametrize("num_embeddings", [31, 65, 130])
def test_channels_that_do_not_fill_a_tile(make_prior: MakePrior, channels: int, num_embeddings: int) -> None:
    for kind, shape in (("gated", (3, 3)), ("residual", (3, 3)), ("wavenet", (9,))):
        prior = make_prior(kind, channels=channels, num_embeddings=num_embeddings)
        expected = prior.sample(13, shape, method="torch")
        assert torch.equal(prior.sample(13, shape, method="native"), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_sequence_longer_than_a_block(make_prior: MakePrior, batch: int) -> None:
    prior = make_prior("wavenet", num_layers=9, dilation_cycle=9, num_classes=3, condition_channels=2)
    given = {"labels": torch.arange(batch), "condition": torch.randn(batch, 2, 700).double()}
    expected = prior.sample(batch, (700,), method="torch", **given)
    assert torch.equal(prior.sample(batch, (700,), method="native", **given), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_sequence_of_several_blocks_with_strides(batch: int) -> None:
    """A block is the largest multiple of all strides, here 252 of 256 columns."""
    prior = Programmed(
        [
            Step((Term(CODES, ((0, -1), (0, -3)), "a"), Term(CONDITION, weight="b")), 4, stride=3),
            Step((Term(0, ((0, 0), (0, -2), (0, -5)), "c"),), 4, activation="tanh", stride=4),
            Step((Term(0, ((0, -1), (0, -2), (0, -6)), "d"), Term(1, ((0, 0), (0, -9)), "e")), 3),
        ]
    )
    condition = torch.randn(batch, 2, 1, 600).double()
    expected = prior.sample(batch, (1, 600), method="torch", condition=condition)
    assert torch.equal(prior.sample(batch, (1, 600), method="native", condition=condition), expected)
    beginning = prior.sample(batch, (1, 270), method="reference", condition=condition[..., :270])
    assert torch.equal(expected[..., :270], beginning)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("batch", [1, 2, 35])
def test_any_number_of_threads_draws_the_same_with_strides(
    monkeypatch: pytest.MonkeyPatch, threads: int, batch: int
) -> None:
    monkeypatch.setattr(native, "_PRODUCTS", 1)
    monkeypatch.setattr(native, "_busy", lambda: False)
    prior = Programmed(TWO_STREAMS)
    condition = torch.randn(batch, 2, 5, 6).double()
    expected = prior.sample(batch, (5, 6), method="torch", condition=condition)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(prior.sample(batch, (5, 6), method="native", condition=condition), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("load", "batch", "threads"), [(1.0, 8, 2), (99.0, 8, 1), (99.0, 32, 2)])
def test_threads_that_meet_are_few_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, load: float, batch: int, threads: int
) -> None:
    monkeypatch.setattr(native, "_PRODUCTS", 1)
    monkeypatch.setattr(native.os, "getloadavg", lambda: (load * os.cpu_count(), 0.0, 0.0), raising=False)
    torch.set_num_threads(2)
    try:
        prior = Programmed(TWO_STREAMS)
        assert native._threads(*prior.lower(), batch) == threads
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("cache", "precision", "threads"),
    [(0, None, 1), (3, None, 2), (6, None, 2), (6, "bfloat16", 1), (12, None, 1)],
)
def test_threads_divide_weights_that_one_cache_cannot_hold(
    monkeypatch: pytest.MonkeyPatch, cache: int, precision: str | None, threads: int
) -> None:
    """``cache`` is in tenths of the weights: two of 6 hold them, two threads with 3 still read half each."""
    program, weights = Programmed(TWO_STREAMS).lower()
    late = [step for step, phase in zip(program.steps, program.phases(), strict=True) if phase != Phase.ROW]
    names = [term.weight for step in late for term in step.terms if term.source > CODES and term.weight]
    size = sum(weights[name].numel() * 4 for name in names)
    monkeypatch.setattr(native, "_second_cache", lambda: cache * size // 10)
    monkeypatch.setattr(native, "_busy", lambda: False)
    torch.set_num_threads(2)
    try:
        weights = {name: weight.float() for name, weight in weights.items()}
        assert native._threads(program, weights, 1, precision) == threads
    finally:
        torch.set_num_threads(1)


def test_large_codebooks() -> None:
    torch.manual_seed(0)
    prior = PixelCNN(16384, 8, 2).double()
    with torch.no_grad():
        prior.head[2].weight.mul_(20)
    for options in ({}, {"top_k": 1000}, {"top_p": 0.5}):
        expected = prior.sample(3, (2, 3), method="reference", **options)
        assert torch.equal(prior.sample(3, (2, 3), method="native", **options), expected)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e4, 1e30, 1e300])
@pytest.mark.parametrize("scale", [0, 1e-30, 1, 1e30, 1e300])
def test_scores_of_any_size(make_prior: MakePrior, temperature: float, scale: float) -> None:
    """Also scores that float32 can't represent."""
    prior = make_prior("gated")
    with torch.no_grad():
        for parameter in prior.head[2].parameters():
            parameter.mul_(scale)
    expected = prior.sample(20, (2, 3), method="reference", temperature=temperature)
    assert torch.equal(prior.sample(20, (2, 3), method="native", temperature=temperature), expected)


@torch.no_grad()
def test_bfloat16_prior_keeps_its_weights_and_computes_in_float32(make_prior: MakePrior, kind: str) -> None:
    prior = make_prior(kind, num_embeddings=16, channels=40).bfloat16()
    shape = (4, 5) if prior.ndim == 2 else (20,)
    drawn = prior.sample(500, shape, method="native")
    rounded = prior.sample(500, shape, method="torch")
    widened = prior.float().sample(500, shape, method="torch")
    differs = [(other != widened).flatten(1).any(1).double().mean() for other in (drawn, rounded)]
    assert differs[0] < 0.02  # biases that are added up when the prior is lowered are rounded to bfloat16
    assert differs[1] > 3 * differs[0]


INTERRUPTED = """
import torch, vqfast
prior = vqfast.WaveNet()
print("started", flush=True)
prior.sample(1, (10_000_000,), method="native")
"""


@pytest.mark.slow
def test_control_c_stops_it_within_a_second() -> None:
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert error.rstrip().endswith("KeyboardInterrupt")
    # of the CPU, most of it to import PyTorch: a busy machine's clock says nothing
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 10


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of memory of each call of the sampler."""
    found, prepare = list[int](), torch.ops.vqfast_native.prepare_sampler

    def spy(*args: Any) -> Tensor:
        memory: Tensor = prepare(*args)
        found.append(memory.nbytes)
        return memory

    monkeypatch.setattr(native, "_spare", lambda: torch.empty(0, dtype=torch.uint8))
    monkeypatch.setattr(torch.ops.vqfast_native, "prepare_sampler", spy)
    return found


def test_the_memory_of_a_sequence_does_not_grow_with_its_length(taken: list[int]) -> None:
    prior = WaveNet(11, 8, 3, condition_channels=3, condition_stride=8).eval()
    for length in (300, 600, 2000):
        prior.sample(2, (length,), condition=torch.zeros(2, 3, -(-length // 8)), method="native")
    assert taken[0] == taken[1] == taken[2]


def test_a_sequence_keeps_the_columns_that_taps_reach_back_to(taken: list[int]) -> None:
    prior = WaveNet(11, channels=32, num_layers=10, condition_channels=3, condition_stride=64).eval()
    condition = torch.zeros(9, 3, 10)
    for num in (1, 9):
        prior.sample(num, (640,), condition=condition[:num], method="native")
    columns = sum(2**layer + 1 for layer in range(10))
    assert columns * 32 * 4 < (taken[1] - taken[0]) / 8 < 1.5 * columns * 32 * 4


def test_other_python_threads_run_meanwhile() -> None:
    from threading import Thread

    prior = WaveNet(channels=64)
    sampling = Thread(target=prior.sample, args=(1, (20_000,)), kwargs={"method": "native"})
    sampling.start()
    turns = 0
    while sampling.is_alive():
        time.sleep(0.005)
        turns += 1
    assert turns >= 10


def test_it_is_refused_where_it_cannot_run(make_prior: MakePrior) -> None:
    prior = make_prior("gated").to("meta")
    with pytest.raises(RuntimeError, match="native sampler runs on cpu, not on meta"):
        prior.sample(1, (2, 2), method="native")


def test_auto_obeys_the_backend_that_is_asked_for(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = next(make_prior("gated").parameters())
    assert registry.backend("sampler", weight).__name__.endswith("native")
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    assert registry.backend("sampler", weight).__name__.endswith("reference")
    assert registry.backend("sampler", weight, name="native").__name__.endswith("native")


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, None),
        (torch.float32, "in pieces"),
        (torch.bfloat16, None),
        (torch.float64, None),
        (torch.float64, "bfloat16"),
    ],
)
@pytest.mark.parametrize("channels", [4, 64])
@pytest.mark.parametrize("kind", [PixelCNN, PixelSNAIL, WaveNet])
def test_the_native_executor_keeps_what_the_plan_says(
    kind: type[CausalPrior],
    channels: int,
    dtype: torch.dtype,
    precision: str | None,
    taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers: dict[str, int] = {"num_blocks": 1, "num_heads": 2} if kind is PixelSNAIL else {"num_layers": 3}
    prior = kind(11, channels=channels, condition_channels=3, **layers).to(dtype).eval()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    if precision == "in pieces":
        monkeypatch.setattr(native, "_PIECES_FROM", 1)
        precision = None
    shape = (40,) if kind is WaveNet else (4, 10)
    for num in (1, 9):
        condition = torch.zeros(num, 3, *shape, dtype=dtype)
        prior.sample(num, shape, condition=condition, method="native", precision=precision)
    program, weights = prior.lower()
    a_sample = batches.sample_bytes(program, weights, (1, 40) if kind is WaveNet else shape, precision)
    kept = (taken[1] - taken[0]) / 8
    # It counts the padding of the widest vectors, and whole rows where this executor keeps a position. Narrow
    # vectors pad a few channels to far less.
    assert kept <= a_sample <= (12 if channels == 64 else 60) * kept
    assert taken[0] - a_sample <= batches.weight_bytes(weights)


def test_the_plan_counts_rows_that_are_drawn_side_by_side(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = PixelCNN(11, channels=16, num_layers=3, condition_channels=3).eval()
    shape = (6, 40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for in_waves in (0, 1):  # one row after another, and side by side
        monkeypatch.setattr(native, "_IN_WAVES", in_waves)
        prior.sample(1, shape, condition=torch.zeros(1, 3, *shape), method="native")
    program, weights = prior.lower()
    rows = wavefront(program, weights, *shape).rows
    assert rows > 1
    side_by_side, single = (batches.sample_bytes(program, weights, shape, None, n) for n in (rows, 1))
    assert 1 <= (side_by_side - single) / (taken[1] - taken[0]) <= 10  # with pieces, which aren't kept here
