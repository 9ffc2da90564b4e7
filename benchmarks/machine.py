"""The machine: its name, its peak rates, and the memory that a call takes."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import math
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

import vqfast
from vqfast.ops import library
from vqfast.ops.build import INSTRUCTION_SETS, find_compiler
from vqfast.sampling.executors import native

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEERS = (
    "triton",
    "faiss-cpu",
    "scikit-learn",
    "vector-quantize-pytorch",
    "flash-kmeans",
    "transformers",
    "diffusers",
)
ROOT = Path(__file__).parents[1]


class Peak(NamedTuple):
    """The machine's highest rates, from which floors are computed, and how they were measured."""

    flops: float  # operations a second
    bytes: float  # read and written, a second
    how: str


def synchronize() -> None:
    """Waits until the device has finished all work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def best(call: Callable[[], object], rounds: int = 5) -> float:
    """The shortest of ``rounds`` times of ``call``, in seconds."""
    times = []
    for _ in range(rounds):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def peak() -> Peak:
    """Measures the peak: float32 multiply-adds on a CPU's registers, or a GPU's large bf16 product; a copy.

    Without a C++ compiler, a CPU's peak is a large float32 product.
    """
    block = torch.ones(2**26, device=DEVICE)  # 256 MB
    copied, target = 2 * block.nbytes, torch.empty_like(block)
    rate = copied / best(lambda: target.copy_(block))
    if DEVICE.type == "cpu":
        try:
            return Peak(_on_registers(), rate, "float32 multiply-adds on registers; a copy of 256 MB")
        except RuntimeError:  # no compiler
            size, dtype = 2048, torch.float32
    else:
        size, dtype = 8192, torch.bfloat16
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    flops = 2 * size**3 / best(lambda: a @ a)
    return Peak(flops, rate, f"a product of {size}, {dtype}; a copy of 256 MB")


@functools.cache
def reading(size: int) -> float:
    """Bytes a second that a CPU's threads read together, each its share of ``size`` again and again.

    So they come from the caches that hold them. Without a C++ compiler they count as nothing.
    """
    try:
        return _on_registers(str(size))
    except RuntimeError:  # no compiler
        return math.inf


def _on_registers(*arguments: str) -> float:
    """What ``peak.cpp`` measures with the instructions of the kernels, on as many threads as PyTorch uses."""
    flags = INSTRUCTION_SETS.get(library.instruction_set() or "", ["-march=native"])
    with tempfile.TemporaryDirectory() as folder:
        program, source = Path(folder, "peak"), Path(__file__).with_name("peak.cpp")
        options = ["-O2", *flags, "-pthread", str(source), "-o", str(program)]
        subprocess.run([*find_compiler(), *options], check=True)
        threads = str(torch.get_num_threads())
        done = subprocess.run([program, threads, *arguments], check=True, capture_output=True)
    return float(done.stdout)


def added_memory(call: Callable[[], object]) -> int | None:
    """The most bytes that ``call`` adds to the memory in use; ``None`` where the system doesn't tell."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    native.kept.clear()  # what a sampler keeps for the next call counts too
    ctypes.CDLL(None).malloc_trim(0)  # else memory that is free already would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def name() -> str:
    """The device's name in records, with the instruction set that is used where it is less than AVX-512.

    Virtual machines call CPUs of several generations alike.
    """
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    threads = torch.get_num_threads()
    model = f"{threads} core{'s' * (threads > 1)}, {found.group(1) if found else platform.processor()}"
    used = library.instruction_set()
    return model if used in (None, "amx") or used.startswith("avx512") else f"{model}, {used}"


def conditions() -> dict[str, object]:
    """The commit, the threads and the versions of packages, for the record."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "vqfast": vqfast.__version__}
    for peer in PEERS:
        try:
            versions[peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": _commit(), "threads": torch.get_num_threads(), "versions": versions}


def _commit() -> str:
    """The commit of the working tree, with a ``+`` if anything but records differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)

    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return f"sources {_digest()}"
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode
    return git("rev-parse", "--short=12", "HEAD").stdout.strip() + "+" * (changed == 1) or "unknown"


def _digest() -> str:
    """Of all source files: what stands for the commit where there is no git."""
    digest = hashlib.sha256()
    for folder in ("vqfast", "csrc", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".def"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
