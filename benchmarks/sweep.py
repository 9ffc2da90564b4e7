"""Times the neighbours of each tuning of the Triton kernels that this GPU uses, to find faster ones.

A table holds, by architecture, a tuning for each key: a number of channels, an arithmetic or a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import machine
from vqfast import PixelCNN
from vqfast.functional import masked_conv2d, nearest_code

Tunings = dict[Any, Any]  # of one architecture: a NamedTuple for each key


class Line(NamedTuple):
    """A tuning's place in its table, and a call that uses it."""

    tunings: Tunings
    key: Any
    call: Callable[[], object]


def lines() -> dict[str, Line]:
    """Every tuning of this device by name; not those of float64, which need only be right."""
    from vqfast.ops.launch import architecture
    from vqfast.ops.nearest.tunings import SEARCH, fallback

    arch = architecture(machine.DEVICE)
    arch = arch if arch in SEARCH else fallback(arch)
    return dict(found for part in (_search, _convolution, _sampler) for found in part(arch))


def _search(arch: str) -> Iterator[tuple[str, Line]]:
    from vqfast.ops.nearest.tunings import ANY, SEARCH

    for widest in SEARCH[arch]:
        channels = 1024 if widest == ANY else widest
        z_e, codebook = (torch.randn(n, channels, device=machine.DEVICE) for n in (65536, 4096))
        yield f"search {channels}", Line(SEARCH[arch], widest, partial(nearest_code, z_e, codebook))


def _convolution(arch: str) -> Iterator[tuple[str, Line]]:
    from vqfast.ops.masked_conv import triton as kernels
    from vqfast.ops.masked_conv.tunings import CONVOLVE, WEIGHT

    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")):
        shapes = (16, 128, 32, 32), (256, 128, 3, 3), (16, 256, 32, 32)
        x, weight, grad = (torch.randn(shape, device=machine.DEVICE, dtype=dtype) for shape in shapes)
        convolve = partial(masked_conv2d, x, weight, mask_type="B")
        backward = partial(kernels.masked_conv2d_backward, grad, x, weight, 5, [1, 1], [1, 1])
        key = with_precision(precision, partial(kernels.arithmetic, x))
        for name, table, call in (("convolve", CONVOLVE, convolve), ("weight", WEIGHT, backward)):
            yield f"{name} {key}", Line(table[arch], key, partial(with_precision, precision, call))


def _sampler(arch: str) -> Iterator[tuple[str, Line]]:
    from vqfast.ops.nearest.tunings import ANY
    from vqfast.sampling.executors.triton_tunings import SAMPLING

    for dtype in (torch.bfloat16, torch.float32):
        prior = PixelCNN(512, 128, 15).to(machine.DEVICE, dtype).eval()
        tunings = SAMPLING[dtype.itemsize][arch]
        for widest in tunings:
            batch = 4096 if widest == ANY else widest
            call = partial(prior.sample, batch, (2, 32), method="triton", batch_size=batch)
            yield f"sampler {dtype}, batch {batch}", Line(tunings, widest, call)


def with_precision(precision: str, call: Callable[[], object]) -> object:
    """Calls ``call`` while float32 convolutions compute in ``precision``: "tf32" or "ieee"."""
    conv = getattr(torch.backends.cudnn, "conv")  # noqa: B009  PyTorch's types lack it
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        return call()
    finally:
        conv.fp32_precision = before


def neighbours(tuning: Any) -> Iterator[Any]:
    """The tuning itself, then those with one size halved or doubled, or one pipeline stage more or less."""
    yield tuning
    for name, value in tuning._asdict().items():
        for other in _others(name, value):
            yield tuning._replace(**{name: other})


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, tuple):  # a tuning of several launches
        return list(neighbours(value))[1:]
    if name == "stages":
        return [other for other in (value - 1, value + 1) if other]
    if name == "splits" or (name == "members" and value == 1):  # not sizes: they choose another algorithm
        return []
    minimum = 1 if name in ("warps", "images", "members") else min(16, value)  # of a tensor core's tile
    return [other for other in (value // 2, value * 2) if other >= minimum]


def time_neighbours(line: Line, seconds: float = math.inf) -> list[dict[str, object]]:
    """Times the call with each neighbour of a tuning in its place; the tuning itself comes first.

    After ``seconds`` it begins no other.
    """
    found: list[dict[str, object]] = []
    until = time.monotonic() + seconds
    for tuning in neighbours(line.tunings[line.key]):
        if time.monotonic() >= until:
            break
        with replaced(line.tunings, line.key, tuning):
            try:
                line.call()
                outcome: dict[str, object] = {"seconds": machine.best(line.call)}
            except Exception as error:  # whatever a compiler may raise
                outcome = {"failed": f"{type(error).__name__}: {error}"[:200]}
        shown = {name: _plain(value) for name, value in tuning._asdict().items()}
        found.append({**shown, **outcome})
    return found


def _plain(value: Any) -> Any:
    return value._asdict() if hasattr(value, "_asdict") else value


@contextmanager
def replaced(tunings: Tunings, key: Any, tuning: Any) -> Iterator[None]:
    """Puts ``tuning`` in the place of ``key`` for a while."""
    before = tunings[key]
    tunings[key] = tuning
    try:
        yield
    finally:
        tunings[key] = before
