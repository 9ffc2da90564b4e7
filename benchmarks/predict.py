"""What the GPU kernels should take, from what can be counted without a GPU: ``python -m benchmarks.predict``.

It compiles the kernels, counts instructions, bytes, barriers and launches, writes the counts to
``results/kernels.json``, and the table into docs/gpus.md. ``--table`` makes the table from the counts that
are there.

A time is given twice: as if all parts overlapped, and as if none did.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Any, NamedTuple

import torch

from benchmarks.machine import ROOT
from benchmarks.record import RESULTS

COUNTS, PAGE = RESULTS / "kernels.json", ROOT / "docs" / "gpus.md"
BEGIN, END = "<!-- predictions -->\n", "<!-- end of predictions -->\n"
LAUNCH, MEETING, LOAD = 2e-6, 0.7e-6, 0.7e-6  # seconds: of a launch, of a meeting, of a load with a product


class Gpu(NamedTuple):
    """Rates, as measured elsewhere (H100) or nine tenths of the data sheet."""

    arch: str
    multiprocessors: int
    clock: float
    lanes: int
    memory: float  # bytes a second
    cache: float  # bytes a second from the L2
    half: float  # operations a second of fp16 and bf16 products
    single: float  # of float32 without tensor cores


GPUS = {
    "A100": Gpu("sm_80", 108, 1.41e9, 64, 1.8e12, 4.0e12, 280e12, 18e12),
    "H100": Gpu("sm_90", 132, 1.7e9, 128, 3.0e12, 5.5e12, 800e12, 60e12),
    "H200": Gpu("sm_90", 132, 1.7e9, 128, 4.3e12, 5.5e12, 800e12, 60e12),
    "B200": Gpu("sm_100", 148, 1.8e9, 128, 7.2e12, 9.0e12, 2000e12, 68e12),
}
SEARCHES = {(131072, 512, 64): 0.003, (131072, 1024, 256): 0.006, (131072, 8192, 256): 0.009}  # listed again
PEER = ((131072, 512, 64), (131072, 8192, 256))  # of flash-kmeans, on an H100 alone
CONVOLUTIONS = {"3x3 B": 5, "7x7 A": 24}  # visible taps, of (16, 128, 32, 32) to 128 channels
# Images, the side of their grid, whether rows are drawn side by side; 15 layers of 128 channels, in bfloat16.
SAMPLES = {
    **{f"batch {batch}": (batch, 32, False) for batch in (1, 16, 256, 1024, 8192)},
    "batch 1, 64x64, row after row": (1, 64, False),
    "batch 1, 64x64, rows side by side": (1, 64, True),
}


def counted() -> dict[str, Any]:
    """The counts of every kernel in the table."""
    import triton

    found: dict[str, Any] = {"triton": triton.__version__, "search": {}}
    for arch in sorted({gpu.arch for gpu in GPUS.values()}):
        for channels in sorted({size[2] for size in SEARCHES}):
            found["search"][f"{arch} {channels}"] = search_counts(arch, channels)
    found["flash-kmeans"] = peer_counts()
    found["sampler"] = {name: jobs_of(*sample) for name, sample in SAMPLES.items()}
    return found


def search_counts(arch: str, channels: int) -> dict[str, Any]:
    """Of the search: instructions of a score, registers, shared memory, vectors of a block."""
    from benchmarks import compiled
    from vqfast.ops.nearest.tunings import SEARCH, pick

    tuning = pick(SEARCH, arch, channels)
    kernel = compiled.search_kernel(arch, tuning, channels, write=True)
    scores = tuning.vectors * tuning.codes / (32 * tuning.warps)
    return {
        **compiled.of_a_score(compiled.search_loop(kernel), scores),
        "registers": compiled.registers(kernel),
        "shared": kernel.metadata.shared,
        "vectors": tuning.vectors,
    }


def peer_counts() -> dict[str, Any]:
    """Of flash-kmeans' kernel, with the versions counted; if it isn't installed, those that are there."""
    import triton

    from benchmarks import peer_kernel

    try:
        counts = {f"{size}": peer_kernel.counts(*size) for size in PEER}
    except ImportError:
        kept: dict[str, Any] = json.loads(COUNTS.read_text())["flash-kmeans"]
        return kept
    return {"version": metadata.version("flash-kmeans"), "triton": triton.__version__, **counts}


def jobs_of(batch: int, side: int, together: bool) -> dict[str, int]:
    """Of the sampler: how often it computes positions and what is known before; jobs, blocks, weights."""
    from vqfast import PixelCNN
    from vqfast.sampling.executors.triton_plan import Plan, padded
    from vqfast.sampling.executors.triton_tunings import SAMPLING, pick
    from vqfast.sampling.wavefront import raster, wavefront

    prior = PixelCNN(512, 128, 15).to(torch.bfloat16).eval()
    program, weights = prior.lower()
    front = wavefront(program, weights, side, side) if together else raster(program, side, side)
    tuning = pick(SAMPLING[2]["sm_90"], batch, front.rows)
    images = padded(batch, max(launch.images for launch in tuning))
    plan = Plan(program, weights, front, images, 1, 0, tuning)
    chunks = -(-front.moments // front.chunk)
    # a launch more for each row that ends within a chunk
    within = sum((y * front.distance + side) % front.chunk > 0 for y in range(side - 1))
    groups = images // tuning.position.images
    members = max(1, min(tuning.position.members, 132 // groups))
    parts = {
        name: tables.tensors()["weights"].numel() for name, tables in vars(plan).items() if name in PARTS
    }
    return {
        "batch": batch,
        "positions": side * side,
        "moments": front.moments,
        "chunks": chunks,
        "launches": 2 * chunks + within,
        "jobs": len(plan.position.jobs),
        "row jobs": len(plan.row.jobs),
        "groups": groups,
        "members": members,
        "position weights": parts["position"],
        "row weights": parts["row"],
    }


PARTS = ("row", "position")


def search_times(gpu: Gpu, size: tuple[int, int, int], share: float, counts: dict[str, Any]) -> list[str]:
    """The cells of a row about ``nearest``."""
    n, k, d = size
    found = counts["search"][f"{gpu.arch} {d}"]
    again = 12 * share * 2 * n * k * d / gpu.half  # three products, at a quarter of the rate
    return _search_cells(gpu, size, found, 4 * (n * d + k * d) + 8 * n, 2, again)


def peer_times(gpu: Gpu, size: tuple[int, int, int], counts: dict[str, Any]) -> list[str]:
    """The cells of a row about flash-kmeans' kernel, which is given norms and reads float16."""
    n, k, d = size
    memory = 2 * (n * d + k * d) + 4 * (2 * n + k)
    return _search_cells(gpu, size, counts["flash-kmeans"][f"{size}"], memory, 1, 0.0)


def _search_cells(
    gpu: Gpu, size: tuple[int, int, int], found: dict[str, Any], memory: float, launches: int, beside: float
) -> list[str]:
    n, k, d = size
    slots = gpu.multiprocessors * gpu.clock
    # arithmetic that isn't floating point has 64 lanes
    arithmetic = n * k * (found["full"] / (gpu.lanes * slots) + found["other"] / (64 * slots))
    cache = n / found["vectors"] * k * d * 2
    parts = [arithmetic, 2 * n * k * d / gpu.half, memory / gpu.memory, cache / gpu.cache]
    shown = f"{found['full'] + found['other']:.2f} instructions a score"
    return [shown, f"{memory / 1e6:.0f} MB", "0", str(launches), _span(parts, launches * LAUNCH + beside)]


def convolution_times(gpu: Gpu, taps: int, backward: bool, dtype: str) -> list[str]:
    """The cells of a row about the masked convolution."""
    positions, channels, width = 16 * 32 * 32, 128, 2 if dtype == "bfloat16" else 4
    rate = gpu.half if dtype == "bfloat16" else gpu.single
    products = 3 if backward else 1
    operations = products * 2 * positions * channels * channels * taps
    memory = products * 2 * positions * channels * width
    launches = 4 if backward else 1
    return [
        f"{operations / 1e9:.1f} GFLOP",
        f"{memory / 1e6:.0f} MB",
        "0",
        str(launches),
        _span([operations / rate, memory / gpu.memory], launches * LAUNCH),
    ]


def sampler_times(gpu: Gpu, found: dict[str, int]) -> list[str]:
    """The cells of a row about the sampler."""
    moments, chunks = found["moments"], found["chunks"]
    jobs = moments * found["jobs"] + chunks * found["row jobs"]
    meetings = jobs if found["members"] > 1 else 0
    waiting = meetings * MEETING + jobs * LOAD
    weights = 2 * found["groups"] * (moments * found["position weights"] + chunks * found["row weights"])
    operations = 2 * found["batch"] * found["positions"] * (found["position weights"] + found["row weights"])
    parts = [operations / gpu.half, weights / gpu.cache]
    return [
        f"{operations / 1e12:.3g} TFLOP",
        f"{weights / 1e9:.3g} GB of weights from the L2",
        f"{meetings / found['positions']:.3g} a position",
        str(found["launches"]),
        _span(parts, waiting + found["launches"] * LAUNCH),
    ]


def _span(parts: list[float], beside: float) -> str:
    low, high = max(parts) + beside, sum(parts) + beside
    return f"{_time(low)} to {_time(high)}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def table(counts: dict[str, Any]) -> str:
    """Markdown: a line for each kernel, shape and GPU."""
    head = ["kernel", "GPU", "arithmetic", "memory", "meetings", "launches", "time"]
    lines = [head, ["---"] * len(head)]
    for name, gpu in GPUS.items():
        for size, share in SEARCHES.items():
            if f"{gpu.arch} {size[2]}" not in counts["search"]:
                continue
            shown = "nearest N {}, K {}, D {}".format(*size)
            lines.append([shown, name, *search_times(gpu, size, share, counts)])
        for size in PEER:
            if name == "H100" and f"{size}" in counts["flash-kmeans"]:
                version = counts["flash-kmeans"]["version"]
                shown = "flash-kmeans {} assign N {}, K {}, D {}, float16".format(version, *size)
                lines.append([shown, name, *peer_times(gpu, size, counts)])
        for kernel, taps in CONVOLUTIONS.items():
            for dtype in ("bfloat16", "float32"):
                for backward in (False, True):
                    shown = f"masked conv {kernel}, {dtype}{', with backward' if backward else ''}"
                    lines.append([shown, name, *convolution_times(gpu, taps, backward, dtype)])
        for sample, found in counts["sampler"].items():
            lines.append([f"sampling, {sample}, bfloat16", name, *sampler_times(gpu, found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: list[str]) -> None:
    """Counts, unless ``--table`` is given, and writes the table."""
    if "--table" not in arguments:
        COUNTS.write_text(json.dumps(counted(), indent=1) + "\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    shown = table(json.loads(COUNTS.read_text()))
    PAGE.write_text(f"{before}{BEGIN}{shown}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
