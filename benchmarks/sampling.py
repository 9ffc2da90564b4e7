"""Prior sampling, the naive sampler against the executors: ``python -m benchmarks.sampling`` records it.

The naive sampler is timed on its first positions and scaled to all: each costs it the same full pass.
Runs are interleaved; medians count. Floor: the arithmetic on visible taps at this machine's peak, which is
multiply-adds on registers alone.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's idle threads mustn't spin beside ours

import torch

import vqfast
from benchmarks import record
from benchmarks.nearest import peak_flops
from vqfast.prior.base import CausalPrior
from vqfast.prior.program import CODES

ROUNDS = 3
NAIVE_POSITIONS = 3


def gated(channels: int) -> vqfast.PixelCNN:
    """The gated PixelCNN of 15 layers, K 512."""
    return vqfast.PixelCNN(512, channels, 15)


CASES = {
    "gated 32x32, K 512, 128 channels, 15 layers": (lambda: gated(128), (32, 32), (1, 16)),
    "gated 8x8, K 512, 64 channels, 15 layers": (lambda: gated(64), (8, 8), (1, 64)),
    "Keras 7x7, K 128": (lambda: vqfast.ResidualPixelCNN(), (7, 7), (1, 256)),
    "WaveNet 16000 steps, K 256, 64 channels, 30 layers": (lambda: vqfast.WaveNet(), (16000,), (1,)),
}


class _EnoughError(Exception):
    pass


def naive_seconds(prior: CausalPrior, batch: int, shape: tuple[int, ...]) -> float:
    """Seconds for a whole batch by the naive sampler, from its first positions."""
    times = [time.perf_counter()]

    def stop(_: int) -> None:
        times.append(time.perf_counter())
        if len(times) > NAIVE_POSITIONS:
            raise _EnoughError

    with suppress(_EnoughError):
        prior.sample(batch, shape, method="naive", batch_size=batch, progress=stop)
    steps = [after - before for before, after in pairwise(times)]
    return statistics.median(steps) * torch.Size(shape).numel()


def seconds(prior: CausalPrior, batch: int, shape: tuple[int, ...], method: str, seed: int) -> float:
    """Seconds for a whole batch."""
    began = time.perf_counter()
    prior.sample(batch, shape, method=method, batch_size=batch, seed=seed)
    return time.perf_counter() - began


def flop(prior: CausalPrior, shape: tuple[int, ...]) -> float:
    """Operations a sample on visible taps; products with one-hot codes are lookups and don't count."""
    program, weights = prior.lower()
    terms = [t for step in program.steps for t in step.terms if t.source != CODES and t.weight is not None]
    return 2.0 * sum(weights[t.weight].numel() for t in terms) * torch.Size(shape).numel()


def measure() -> dict[str, object]:
    """All cases."""
    peak, rows = peak_flops(), []
    for name, (build, shape, batches) in CASES.items():
        torch.manual_seed(0)
        prior = build().eval()
        executors = {method: (prior, method) for method in ("torch", "native")}
        executors["native, bfloat16 weights"] = copy.deepcopy(prior).bfloat16(), "native"
        for batch in batches:
            samples: dict[str, list[float]] = {"naive": [], **{name: [] for name in executors}}
            for seed in range(ROUNDS):
                samples["naive"].append(naive_seconds(prior, batch, shape))
                for executor, (own, method) in executors.items():
                    samples[executor].append(seconds(own, batch, shape, method, seed))
            floor = batch * flop(prior, shape) / peak
            rows.append({"case": name, "batch": batch, "seconds": samples, "floor_seconds": floor})
            print(f"{name}, batch {batch}: {line(rows[-1])}", flush=True)
    return {"multiply_add_gflops": peak / 1e9, "naive_positions_timed": NAIVE_POSITIONS, "rows": rows}


def line(row: dict) -> str:
    """A row's figures for people."""
    naive, cached, native, narrow = (statistics.median(samples) for samples in row["seconds"].values())
    ratios = f"{naive / native:.0f}x | {cached / native:.1f}x | {row['floor_seconds'] / native:.0%}"
    return f"{naive:.3g} s | {cached:.3g} s | {native:.3g} s | {ratios} | {narrow:.3g} s"


def table(path: Path) -> str:
    """The record as a Markdown table."""
    rows = json.loads(path.read_text())["rows"]
    names = "prior", "batch", "naive", "torch", "native", "naive / native", "torch / native", "of the peak"
    head = f"| {' | '.join(names)} | native, bfloat16 weights |\n{'|---' * (len(names) + 1)}|\n"
    return head + "\n".join(f"| {r['case']} | {r['batch']} | {line(r)} |" for r in rows)


if __name__ == "__main__":
    record.write("sampling", measure(), table)
