"""Nearest code against its peers: ``python -m benchmarks.nearest`` prints a table and writes a record.

Runs are interleaved; medians count. Floor: 2 N K D operations at the rate of float32 multiply-adds on
registers alone (``peak.cpp``, compiled for this machine); a bf16 pass may be faster than that.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# torch and faiss have an OpenMP each: idle threads of one mustn't spin while the other is timed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from benchmarks import record
from vqfast.functional import nearest_code
from vqfast.ops import library, registry

SHAPES = [(32768, 512, 64), (32768, 1024, 256), (32768, 8192, 256), (32768, 1024, 8), (32768, 16384, 8)]
SMALL = [(64, 512, 64), (64, 1024, 256), (64, 1024, 8)]
OFFSETS = [0, 100, 1000]

Search = Callable[[Tensor, Tensor], Tensor]


def eager(x: Tensor, codebook: Tensor) -> Tensor:
    """What most code bases do."""
    distances = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * x @ codebook.T
    return distances.argmin(-1)


def cdist(x: Tensor, codebook: Tensor) -> Tensor:
    """``torch.cdist`` and an argmin."""
    return torch.cdist(x, codebook).argmin(-1)


def peers() -> dict[str, Search]:
    """The searches that can run here."""
    found: dict[str, Search] = {"vqfast": nearest_code, "eager": eager, "cdist": cdist}
    try:
        import faiss
    except ImportError:
        print("faiss is absent: pip install faiss-cpu")
        return found
    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        index = faiss.IndexFlatL2(codebook.shape[1])
        index.add(codebook.numpy())
        return torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])

    return found | {"faiss": search}


def peak_flops() -> float:
    """Multiply-adds on registers, as operations a second of all the threads that torch uses."""
    with tempfile.TemporaryDirectory() as folder:
        program, source = Path(folder, "peak"), Path(__file__).with_name("peak.cpp")
        command = [library.find_compiler(), "-O2", "-march=native", "-pthread", source, "-o", program]
        subprocess.run(command, check=True)
        done = subprocess.run([program, str(torch.get_num_threads())], check=True, capture_output=True)
    return float(done.stdout)


def seconds(search: Search, x: Tensor, codebook: Tensor) -> float:
    """Seconds of one call, as the mean of enough calls to be measurable."""
    calls, took = 1, 0.0
    while took < 2e-3:
        began = time.perf_counter()
        for _ in range(calls):
            search(x, codebook)
        took, calls = time.perf_counter() - began, calls * 2
    return 2 * took / calls


def wrong_codes(search: Search, offset: float) -> int:
    """Rows out of 8192 with another code than float64's, where its best two differ by more than 1e-6."""
    torch.manual_seed(0)
    x, codebook = torch.randn(8192, 64) + offset, torch.randn(512, 64) + offset
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    squares = torch.cdist(x.double(), codebook.double(), **exact).square()
    best = squares.topk(2, largest=False)
    clear = best.values[:, 1] > best.values[:, 0] * (1 + 1e-6)
    return int(((search(x, codebook) != best.indices[:, 0]) & clear).sum())


def measure() -> dict[str, object]:
    """All shapes and offsets."""
    searches, peak, rows = peers(), peak_flops(), []
    for shape in SHAPES + SMALL:
        n, k, d = shape
        torch.manual_seed(0)
        x, codebook = torch.randn(n, d), torch.randn(k, d)
        samples: dict[str, list[float]] = {name: [] for name in searches}
        for _ in range(3 if n * k * d > 1e10 else 9):
            for name, search in searches.items():
                samples[name].append(seconds(search, x, codebook))
        rows.append({"shape": shape, "seconds": samples, "fraction_of_peak": 0.0})
        rows[-1]["fraction_of_peak"] = 2 * n * k * d / peak / statistics.median(samples["vqfast"])
        print(f"{shape}: {line(rows[-1])}", flush=True)
    return {
        "backend": registry.backend("nearest", torch.zeros(1)).__name__,
        "multiply_add_gflops": peak / 1e9,
        "rows": rows,
        "wrong_codes_of_8192": {
            name: {offset: wrong_codes(search, offset) for offset in OFFSETS}
            for name, search in searches.items()
        },
    }


def line(row: dict) -> str:
    """A row's figures for people."""
    median = {name: statistics.median(samples) for name, samples in row["seconds"].items()}
    others = " | ".join(f"{median[name] / median['vqfast']:.2f}x" for name in median if name != "vqfast")
    return f"{median['vqfast'] * 1e3:.3g} ms | {others} | {row['fraction_of_peak']:.0%}"


def table(path: Path) -> str:
    """The record as Markdown tables."""
    found = json.loads(path.read_text())
    names = [name for name in found["rows"][0]["seconds"] if name != "vqfast"]
    head = f"| N, K, D | vqfast | {' | '.join(names)} | of the float32 peak |\n"
    speed = [f"| {', '.join(map(str, row['shape']))} | {line(row)} |" for row in found["rows"]]
    wrong = found["wrong_codes_of_8192"]
    errors = [f"| {name} | {' | '.join(map(str, of.values()))} |" for name, of in wrong.items()]
    return "\n".join(
        [
            head + "|---" * (len(names) + 3) + "|",
            *speed,
            f"\n| wrong codes of 8192 | {' | '.join(f'shifted by {offset}' for offset in OFFSETS)} |",
            "|---" * (len(OFFSETS) + 1) + "|",
            *errors,
        ]
    )


if __name__ == "__main__":
    record.write("nearest", measure(), table)
