"""Sampling batch by batch, and batches that don't fit the memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.priors import WaveNet
from vqfast.priors.base import CausalPrior
from vqfast.sampling import batches, memory
from vqfast.sampling.attention import Attention
from vqfast.sampling.executors import reference
from vqfast.sampling.program import CODES, Program, Step, Term
from vqfast.sampling.request import Request
from vqfast.sampling.wavefront import wavefront

MakePrior = Callable[..., CausalPrior]
Conditioning = Callable[..., dict[str, Tensor]]
BOTH = {"num_classes": 3, "condition_channels": 2}
SHAPES = {"gated": (3, 4), "residual": (3, 4), "wavenet": (12,), "snail": (3, 4)}


def given(
    prior: CausalPrior, conditioning: Conditioning, num: int, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """Labels, map, numbers and known codes of ``num`` samples."""
    known = torch.randint(prior.num_embeddings, (num, *shape))
    known = known.where(torch.rand(num, *shape) < 0.3, -1)
    return {"numbers": torch.randperm(100)[:num], "known": known, **conditioning(prior, num, shape)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_batches_are_the_samples(
    make_prior: MakePrior, conditioning: Conditioning, kind: str, batch_size: int
) -> None:
    prior, shape = make_prior(kind, **BOTH), SHAPES[kind]
    arguments = given(prior, conditioning, 7, shape)
    whole = prior.sample(7, shape, **arguments)
    asked: list[range] = []

    def part(name: str) -> Callable[[range], Tensor]:
        def of(rows: range) -> Tensor:
            asked.append(rows)
            return arguments[name][list(rows)]

        return of

    functions = {name: part(name) for name in arguments}
    for options in (arguments, functions, {**arguments, "known": part("known")}):
        batches = list(prior.sample_batches(7, shape, batch_size=batch_size, **options))
        assert [len(batch) for batch in batches] == [len(r) for r in torch.arange(7).split(batch_size)]
        assert torch.equal(torch.cat(batches), whole)
    assert {(rows.start, rows.stop) for rows in asked} == {
        (first, min(7, first + batch_size)) for first in range(0, 7, batch_size)
    }


def test_a_million_samples_are_drawn_one_batch_at_a_time(make_prior: MakePrior) -> None:
    prior = make_prior("gated", num_classes=3)
    asked: list[range] = []

    def known(rows: range) -> Tensor:
        asked.append(rows)
        return torch.full((len(rows), 2, 2), -1)

    batches = prior.sample_batches(
        10**15, (2, 2), labels=lambda rows: torch.arange(rows.start, rows.stop) % 3, known=known, batch_size=2
    )
    assert asked == []
    first, second = next(batches), next(batches)
    assert asked == [range(2), range(2, 4)]
    expected = prior.sample(4, (2, 2), labels=torch.arange(4) % 3)
    assert torch.equal(torch.cat([first, second]), expected)


@pytest.mark.parametrize("labels", [2, lambda samples: 2, lambda samples: torch.full((len(samples),), 2)])
def test_one_label_stands_for_all_of_a_batch(make_prior: MakePrior, labels: Any) -> None:
    prior = make_prior("gated", num_classes=3)
    expected = prior.sample(5, (2, 2), labels=torch.full((5,), 2))
    batches = prior.sample_batches(5, (2, 2), labels=labels, batch_size=2)
    assert torch.equal(torch.cat(list(batches)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "labels is None; want integers"),
        ({"labels": torch.tensor([0, 1])}, "labels has shape"),
        ({"known": torch.zeros(9, 3, 4, dtype=torch.int64)}, "known has shape"),
        ({"known": torch.full((4, 3, 4), 5)}, "known has values 5..5"),
        ({"condition": None}, "condition has shape None"),
        ({"method": "fast"}, "method is 'fast'"),
    ],
)
def test_bad_arguments_are_seen_before_the_first_batch(
    make_prior: MakePrior, options: dict[str, Any], message: str
) -> None:
    functions = {
        "labels": lambda rows: torch.zeros(len(rows), dtype=torch.int64),
        "condition": lambda rows: torch.zeros(len(rows), 2, 3, 4),
    }
    with pytest.raises(ValueError, match=message):
        make_prior("gated", **BOTH).sample_batches(4, (3, 4), **{**functions, **options})


@pytest.mark.parametrize("name", ["labels", "condition"])
def test_a_function_for_an_argument_that_the_prior_does_not_take(make_prior: MakePrior, name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        make_prior("gated").sample_batches(4, (3, 4), **{name: lambda rows: torch.zeros(len(rows))})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", torch.tensor([3, 0]), "labels has values 0..3; want 0..2"),
        ("labels", torch.tensor([1]), "labels has shape"),
        ("known", torch.zeros(2, 4, 3, dtype=torch.int64), "known has shape"),
        ("numbers", torch.tensor([-1, 0]), "numbers has values"),
    ],
)
def test_returned_values_of_functions_are_checked(
    make_prior: MakePrior, name: str, value: Tensor, message: str
) -> None:
    options = {"labels": lambda rows: torch.zeros(len(rows), dtype=torch.int64), name: lambda rows: value}
    batches = make_prior("gated", num_classes=3).sample_batches(4, (3, 4), batch_size=2, **options)
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_a_progress_bar(make_prior: MakePrior, capsys: pytest.CaptureFixture[str]) -> None:
    prior = make_prior("gated")
    prior.sample(3, (2, 2))
    assert capsys.readouterr().err == ""
    prior.sample(3, (2, 2), progress=True, batch_size=2)
    assert "12.0/12.0" in capsys.readouterr().err


# memory

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An executor that raises ``error`` on batches of more than ``fitting``, and records their ``sizes``."""
    limit = SimpleNamespace(fitting=2, error=ERRORS[0], sizes=[])

    def run(request: Request) -> Tensor:
        limit.sizes.append(len(request.known))
        if len(request.known) > limit.fitting:
            request.progress(len(request.known))
            raise limit.error
        return reference.run(request)

    monkeypatch.setitem(sys.modules, "vqfast.sampling.executors.limited", SimpleNamespace(run=run))
    monkeypatch.setitem(registry.TABLE["sampler"], "limited", registry.ANYWHERE)
    return limit


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "windows", "python"])
def test_a_batch_that_does_not_fit_is_split(
    make_prior: MakePrior, conditioning: Conditioning, limited: SimpleNamespace, kind: str, error: Exception
) -> None:
    prior, shape = make_prior(kind, **BOTH), SHAPES[kind]
    arguments = given(prior, conditioning, 11, shape)
    limited.error, ticks = error, []
    options = {"method": "limited", "progress": ticks.append}
    drawn = prior.sample(11, shape, **arguments, **options)
    assert limited.sizes == [11, 6, 3, 2, 2, 2, 2, 2, 1]  # a size that didn't fit isn't tried again
    assert torch.equal(drawn, prior.sample(11, shape, method="reference", **arguments))
    assert sum(ticks) == 11 * 12


def test_one_sample_that_does_not_fit_is_an_error(make_prior: MakePrior, limited: SimpleNamespace) -> None:
    limited.fitting = 0
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        make_prior("gated").sample(5, (2, 2), method="limited")
    assert limited.sizes == [5, 3, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("memory"), KeyError(1)])
def test_other_errors_are_raised(make_prior: MakePrior, limited: SimpleNamespace, error: Exception) -> None:
    limited.error = error
    with pytest.raises(type(error)):
        make_prior("gated").sample(5, (2, 2), method="limited")
    assert limited.sizes == [5]


def test_batches_fit_the_free_memory(
    make_prior: MakePrior, limited: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, limited.fitting = make_prior("gated"), 99
    program, weights = prior.lower()
    rows = wavefront(program, weights, 3, 4).rows
    a_sample = batches.sample_bytes(program, weights, (3, 4), side_by_side=rows)
    free = batches.weight_bytes(weights) + 20 * a_sample
    monkeypatch.setattr(batches, "free_memory", lambda device: free)
    drawn = prior.sample(64, (3, 4), method="limited")
    assert set(limited.sizes) == {16}
    monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    assert torch.equal(prior.sample(64, (3, 4), method="limited"), drawn)
    assert limited.sizes[-64:] == [1] * 64
    monkeypatch.setattr(batches, "free_memory", lambda device: math.inf)
    prior.sample(64, (3, 4), method="limited")
    assert limited.sizes[-1] == 64


def test_values_of_a_program() -> None:
    first = Step((Term(CODES, ((-1, 0), (0, -1)), "w"),), width=3)
    gated = Step((Term(0, ((-2, 1), (0, 0)), "w"),), width=8, activation="gate")
    logits = Step((Term(1, ((0, 0),), "w"),), width=5)
    program = Program((first, gated, logits), 5)
    # the first value keeps three rows with a column beside them, since it is read two rows above and to the
    # right; each step keeps its sums of a row
    assert program.values(9, 10) == 3 * (10 + 1) * 3 + 10 * (3 + (4 + 8) + (5 + 5)) + 3 + 8 + 5
    assert program.values(1000, 10) == program.values(9, 10)  # earlier rows aren't kept
    # two rows more that are drawn: values of five rows, sums of three
    three = 5 * (10 + 1) * 3 + 3 * 10 * (4 + 5) + 3 * 10 * (3 + 8 + 5) + 3 + 8 + 5
    assert program.values(9, 10, side_by_side=3) == three


def test_an_attention_keeps_keys_and_values_of_all_positions() -> None:
    step = Step((Term(CODES, ((-1, 0), (0, -1)), "w"),), width=6)
    program = Program((step, Attention(0, 0, 0, 6, heads=2)), 6)
    assert program.values(9, 10) == 2 * 10 * (6 + 6) + 6 + 6 + 90 * (6 + 6)


def test_a_sequence_keeps_a_block() -> None:
    program = WaveNet(5, channels=4, num_layers=3, dilation_cycle=3).lower()[0]
    assert program.values(1, 10) < program.values(1, 1000) == program.values(1, 10**6)


def test_free_memory() -> None:
    free = memory.free_memory(torch.device("cpu"))
    assert 0 < free <= math.inf
    assert sys.platform != "linux" or 2**20 < free < 2**50


SCRIPT = """
import os, resource, torch, vqfast
from vqfast.sampling import batches

torch.set_num_threads(1)
batches.free_memory = lambda device: float("inf")  # so that the batch isn't made smaller before
prior = vqfast.PixelCNN(64, channels=128, num_layers=2, head_channels=16, first_kernel_size=3).eval()
expected = prior.sample(4000, (1, 2), batch_size=500, seed=1)
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
batches = list(prior.sample_batches(4000, (1, 2), batch_size=4000, seed=1))
assert (torch.cat(batches) != expected).double().mean() < 1e-3
print(*map(len, batches))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is no limit")
def test_a_batch_that_the_system_refuses_is_split() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    sizes = [int(size) for size in done.stdout.split()]
    assert sum(sizes) == 4000 and sizes[0] < 4000
