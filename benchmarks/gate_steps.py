"""The steps of the GPU gate; ``gate.py`` runs them.

Times of a call include Python's. Times of kernels are the profiler's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import machine
from benchmarks.gate import GPU_BACKENDS, SECONDS, Item
from vqfast.ops import registry

TESTS = machine.ROOT / "tests"
SMOKE = [sys.executable, "-m", "benchmarks.gate_smoke"]
SUITES = (
    "nearest",
    "degenerate",
    "layer",
    "residual_vq",
    "masked_conv",
    "prior_training",
    "sampling",
    "waveform",
)
WRONG = 99  # the exit status of a sanitizer that found something


def smoke() -> Iterator[Item]:
    """Every kernel once, compared with the reference; again under compute-sanitizer, if it is there."""
    sanitizer = None if registry.interpreted() else shutil.which("compute-sanitizer")
    for tool in ("kernels", *(("memcheck", "racecheck", "synccheck") if sanitizer else ())):
        options = (
            [] if tool == "kernels" else [str(sanitizer), "--tool", tool, "--error-exitcode", str(WRONG)]
        )
        for op in registry.TABLE:
            yield Item(f"{op} {tool}", partial(_command, [*options, *SMOKE, op]), least=60 if options else 20)


def _command(command: list[str], seconds: float) -> dict[str, Any]:
    """Runs a command; its exit status 1 says that a kernel is wrong, as does the sanitizers'."""
    try:
        done = subprocess.run(
            command, cwd=machine.ROOT, env=_environment(), capture_output=True, text=True, timeout=seconds - 5
        )
    except subprocess.TimeoutExpired:
        # a sanitizer is as slow again, though all is compiled
        again = command[: len(SMOKE)] == SMOKE or seconds < SECONDS / 2
        return {"failed": f"not done in {seconds:.0f} s", "unfinished": again}
    said = (done.stdout + done.stderr)[-2000:]
    if done.returncode in (1, WRONG):
        return {"wrong": said}
    return {"passed": True, "said": said[-300:]} if done.returncode == 0 else {"failed": said}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "VQFAST_BACKEND"}


def files_of(op: str) -> list[Path]:
    """The files whose tests decide whether an op's kernels may be used."""
    if op == "sampler":
        return [TESTS / "sampling" / "executors" / "test_triton.py"]
    return [*sorted((TESTS / "ops").glob(f"test_{op}*.py")), TESTS / "ops" / "test_triton_kernels.py"]


def matrix(op: str, backend: str) -> Iterator[Item]:
    """The tests of an op, file by file, without those of other processes, whose kernels are interpreted."""
    for path in files_of(op):
        options = ("-k", backend, "-m", "not first")
        yield Item(f"{op} {path.name}", partial(run_tests, path, options=options), least=60)


def run_tests(path: Path, seconds: float, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Runs pytest on a file. It has passed if some tests ran and none failed."""
    command = [sys.executable, "-m", "pytest", str(path), *options, "--tb=short", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            command,
            cwd=machine.ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=seconds - 5,
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "failed": f"not done in {seconds:.0f} s", "unfinished": True}
    summary = (done.stdout.strip().splitlines()[-1:] or [""])[0]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    found: dict[str, Any] = {"passed": done.returncode == 0, "summary": summary}
    if done.returncode == 1 and any(line.startswith("FAILED") for line in lines):
        found["wrong"] = "\n".join(lines)[:2000]
    elif done.returncode:
        found["failed"] = (done.stdout + done.stderr)[-2000:]
    return found


def kernel_times(call: Callable[[], object], calls: int = 5) -> dict[str, float]:
    """Seconds of a call in each kernel, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    call()
    machine.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        machine.synchronize()
    events = profiler.key_averages()
    return {
        event.key[:60]: float(f"{event.self_device_time_total / calls / 1e6:.4g}")
        for event in events
        if event.self_device_time_total > 0
    }


def timed(call: Callable[[], object], rounds: int = 5) -> dict[str, Any]:
    """The shortest time of a call, and of its kernels."""
    if registry.interpreted():
        return {"seconds": machine.best(call, 1), "kernels": {}}
    call()
    return {"seconds": float(f"{machine.best(call, rounds):.4g}"), "kernels": kernel_times(call)}


def shapes() -> Iterator[Item]:
    """The shapes that are predicted."""
    for size in (
        (131072, 512, 64),
        (131072, 1024, 256),
        (131072, 8192, 256),
        (131072, 16384, 8),
        (64, 512, 64),
    ):
        shown = "N {}, K {}, D {}".format(*size)
        yield Item(f"nearest {shown}", partial(_nearest, _small(size)))
        yield Item(f"flash-kmeans {shown}", partial(_flash_kmeans, _small(size)))
    rehearsal = registry.interpreted()  # the interpreter takes bfloat16's bits for integers
    for dtype in (torch.float32,) if rehearsal else (torch.bfloat16, torch.float32):
        for kernel, mask in ((3, "B"), (7, "A")):
            yield Item(
                f"masked_conv {kernel}x{kernel} {mask}, {dtype}", partial(_convolution, dtype, kernel, mask)
            )
    batches = {torch.bfloat16: (1, 16, 256, 1024, 8192), torch.float32: (1, 1024)}
    for dtype, numbers in ({torch.float32: (1,)} if rehearsal else batches).items():
        for batch in numbers:
            yield Item(
                f"sampler {dtype}, batch {batch}", partial(_sampling, dtype, batch, 32, True), least=60
            )
    for together in (True, False):
        shown = "rows side by side" if together else "row after row"
        sampled = partial(_sampling, dtype, 1, 64, together)
        yield Item(f"sampler {dtype}, batch 1, 64x64, {shown}", sampled, least=60)


def _small(size: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape; in a rehearsal a small one."""
    n, k, d = size
    return (min(n, 70), min(k, 70), min(d, 16)) if registry.interpreted() else size


def _nearest(size: tuple[int, int, int], seconds: float) -> dict[str, Any]:
    from benchmarks.nearest import exact_distances
    from vqfast.functional import nearest_code

    n, k, d = size
    x, codebook = (torch.randn(rows, d, device=machine.DEVICE) for rows in (n, k))
    indices = nearest_code(x, codebook)
    some = torch.arange(0, n, max(1, n // 512), device=machine.DEVICE)
    exact = exact_distances(x[some], codebook)
    chosen = exact.gather(1, indices[some, None])[:, 0]
    assert (chosen <= exact.amin(1) * (1 + 1e-6)).all(), f"wrong codes at {size}"
    return {"shape": size, **timed(partial(nearest_code, x, codebook))}


def _flash_kmeans(size: tuple[int, int, int], seconds: float) -> dict[str, Any]:
    """Its kernel alone, on squared lengths that are there already."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    n, k, d = size
    x, codebook = (torch.randn(1, rows, d, device=machine.DEVICE) for rows in (n, k))
    lengths = x.square().sum(-1)
    return {"shape": size, **timed(lambda: euclid_assign_triton(x, codebook, lengths))}


def _convolution(dtype: torch.dtype, kernel: int, mask: str, seconds: float) -> dict[str, Any]:
    """Forward alone, forward with backward, and both of cuDNN's full convolution with a masked weight."""
    from vqfast.functional import masked_conv2d

    images, channels, side = (1, 4, 4) if registry.interpreted() else (16, 128, 32)
    x = torch.randn(images, channels, side, side, device=machine.DEVICE, dtype=dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(
        channels, channels, kernel, kernel, device=machine.DEVICE, dtype=dtype
    ).requires_grad_()

    def ours() -> torch.Tensor:
        return masked_conv2d(x, weight, mask_type=mask)

    def cudnn() -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weight * visible, padding=kernel // 2)

    flat = torch.arange(kernel * kernel, device=machine.DEVICE)
    seen = kernel * kernel // 2 + (mask == "B")
    visible = (flat < seen).to(dtype).view(1, 1, kernel, kernel)
    got, want = (
        ours(),
        torch.nn.functional.conv2d(x.double(), (weight * visible).double(), padding=kernel // 2),
    )
    assert (got - want).abs().max() <= 2e-2 * want.abs().max(), "the masked convolution is wrong"

    def backward(forward: Callable[[], torch.Tensor]) -> object:
        return torch.autograd.grad(forward().sum(), (x, weight))

    calls: dict[str, Callable[[], object]] = {"forward": ours, "with backward": partial(backward, ours)}
    calls |= {"cuDNN forward": cudnn, "cuDNN with backward": partial(backward, cudnn)}
    return {name: timed(call) for name, call in calls.items()}


def _sampling(dtype: torch.dtype, batch: int, side: int, together: bool, seconds: float) -> dict[str, Any]:
    """``together``: rows are drawn side by side where the executor would."""
    from vqfast import PixelCNN
    from vqfast.sampling.executors import triton as executor

    channels, layers, side = (4, 1, 2) if registry.interpreted() else (128, 15, side)
    batch = min(batch, 2) if registry.interpreted() else batch
    prior = PixelCNN(512 if channels > 4 else 5, channels, layers).to(machine.DEVICE, dtype).eval()
    draw = partial(prior.sample, batch, (side, side), method="triton", batch_size=batch)
    with mock.patch.object(executor, "TOGETHER", executor.TOGETHER if together else 0):
        took = timed(draw, rounds=2)
    return {"images a second": float(f"{batch / took['seconds']:.4g}"), **took}


def suites() -> Iterator[Item]:
    """The quick form of the suites that have GPU kernels; ``python -m benchmarks`` has the others."""
    for name in () if registry.interpreted() else SUITES:
        for case in import_module(f"benchmarks.{name}").CASES:
            yield Item(f"{name}: {case.name}", partial(_case, case), least=60)


def _case(case: Any, seconds: float) -> dict[str, Any]:
    from benchmarks import core

    try:
        found = core.measure(case, rounds=3, full=False)
        peers = found.pop("wrong")  # the gate takes it for a wrong kernel
        return {**found, "wrong peers": peers}
    except core.AbsentError as error:
        return {"absent": str(error)}


def sweep() -> Iterator[Item]:
    """Other tunings of the lines that this device uses."""
    if registry.interpreted():
        return
    from benchmarks import sweep as tunings

    for name, line in tunings.lines().items():
        yield Item(name, partial(_line, line, name), least=60)


def _line(line: Any, name: str, seconds: float) -> dict[str, Any]:
    from benchmarks import sweep as tunings
    from benchmarks.gate_compile import ahead

    count, until = sum(1 for _ in tunings.neighbours(line.tunings[line.key])), time.monotonic() + seconds
    ahead(name, count, seconds / 2)
    found = tunings.time_neighbours(line, until - time.monotonic())
    return {"tunings": found, "unfinished": len(found) < count}


def rest() -> Iterator[Item]:
    """All other tests, file by file: a failure is noted, and isn't a kernel's."""
    done = set(chain.from_iterable(files_of(op) for op in registry.TABLE))
    for path in () if registry.interpreted() else sorted(TESTS.rglob("test_*.py")):
        if path not in done and path.name not in ("test_style.py", "test_wheel.py"):
            shown = path.relative_to(TESTS).as_posix()
            yield Item(shown, partial(_noted, path), least=60)


def _noted(path: Path, seconds: float) -> dict[str, Any]:
    found = run_tests(path, seconds, ("-m", "not slow"))
    return {
        **{key: value for key, value in found.items() if key != "wrong"},
        "failures": found.get("wrong", ""),
    }


STEPS: dict[str, Callable[[], Iterator[Item]]] = {
    "smoke": smoke,
    **{
        f"matrix {op}": partial(matrix, op, backend)
        for backend in GPU_BACKENDS
        for op, supports in registry.TABLE.items()
        if backend in supports
    },
    "shapes": shapes,
    "suites": suites,
    "sweep": sweep,
    "rest": rest,
}
