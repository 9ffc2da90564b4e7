"""Sampling a prior: vqfast's default, its PyTorch executor ("cached"), and the naive loop.

The cases of ``program_of`` sample a network in plain PyTorch, beside the prior of vqfast that is the same.

The naive loop runs the whole network for each position, with PyTorch's convolutions. Only its first positions
are timed, and scaled: each costs the same. So are the first rows of the PyTorch executor, or the first
positions of a sequence, but with attentions, which cost more at later positions. Floor: the products of
visible taps, or the weights' way through the caches, whichever takes longer; products with one-hot codes
are lookups and don't count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import vqfast
from benchmarks import precision
from benchmarks.core import Call, Case, Floor, Outputs, Weights
from benchmarks.machine import DEVICE
from benchmarks.pixelcnnpp import PlainPixelCNNPP
from benchmarks.plain import PlainGated
from vqfast.priors.base import CausalPrior
from vqfast.sampling.draw import Draw, gumbel
from vqfast.sampling.executors import native
from vqfast.sampling.mixture import draw_value
from vqfast.sampling.precision import BFLOAT16
from vqfast.sampling.wavefront import raster, wavefront, weights_read

NAIVE_POSITIONS = 3
LARGE = 256  # positions of a grid of which the naive loop draws one alone: that takes long enough
CACHED = 128  # positions of the loop in PyTorch, in whole rows
REDUCED = "vqfast, precision bfloat16"
ONE_BY_ONE = "vqfast, one row at a time"


class _EnoughError(Exception):
    pass


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Makes the prior's forward use PyTorch's convolutions; vqfast's would make the naive loop faster."""
    before = os.environ.get("VQFAST_BACKEND", "")
    os.environ["VQFAST_BACKEND"] = "reference"
    try:
        yield
    finally:
        os.environ["VQFAST_BACKEND"] = before


def condition_of(prior: CausalPrior, batch: int, shape: tuple[int, ...]) -> Tensor | None:
    """A random map, if the prior takes one."""
    size = prior.condition_shape(batch, shape)
    if size is None:
        return None
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(next(prior.parameters()))


def naive_positions(shape: tuple[int, ...]) -> int:
    """How many positions of a grid the naive loop draws."""
    return 1 if torch.Size(shape).numel() > LARGE else min(NAIVE_POSITIONS, torch.Size(shape).numel())


def naive(make: Callable[[], CausalPrior], batch: int, shape: tuple[int, ...]) -> Call:
    """The naive loop, for its first positions."""
    prior = make().to(DEVICE).eval()
    condition = condition_of(prior, batch, shape)

    def run(seed: int) -> None:
        with plain_convolutions():
            first_positions(seed)

    def first_positions(seed: int) -> None:
        left = [naive_positions(shape)]

        def stop(_: int) -> None:
            left[0] -= 1
            if not left[0]:
                raise _EnoughError

        try:
            prior.sample(
                batch,
                shape,
                condition=condition,
                method="reference",
                batch_size=batch,
                seed=seed,
                progress=stop,
            )
        except _EnoughError:
            return

    return run


def sampler(
    make: Callable[[], CausalPrior],
    batch: int,
    shape: tuple[int, ...],
    method: str,
    dtype: torch.dtype,
    precision: str | None = None,
) -> Call:
    """A sampler of vqfast."""
    prior = make().to(DEVICE, dtype).eval()
    condition = condition_of(prior, batch, shape)
    return lambda seed: prior.sample(
        batch, shape, condition=condition, method=method, batch_size=batch, seed=seed, precision=precision
    )


def first_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """So many rows of a grid, or positions of a sequence, that they have ``CACHED`` positions."""
    rows = -(-CACHED // (shape[1] if len(shape) > 1 else 1))
    return (min(shape[0], rows), *shape[1:])


def cached(make: Callable[[], CausalPrior], batch: int, shape: tuple[int, ...]) -> Call:
    """The executor in PyTorch, for the first rows."""
    prior, rows = make().to(DEVICE).eval(), first_rows(shape)
    condition = part_of(prior, condition_of(prior, batch, shape), (batch, *rows))
    return lambda seed: prior.sample(
        batch, rows, condition=condition, method="torch", batch_size=batch, seed=seed
    )


def part_of(prior: CausalPrior, condition: Tensor | None, size: tuple[int, ...]) -> Tensor | None:
    """A map's part for the first samples and rows of codes ``size``."""
    if condition is None:
        return None
    return condition[tuple(map(slice, prior.condition_shape(size[0], size[1:]) or ()))]


def check(
    make: Callable[[], CausalPrior], batch: int, shape: tuple[int, ...], seed: int, outputs: Outputs
) -> None:
    """The first sample's codes maximise the prior's logits plus the noise, but for rounding."""
    torch.manual_seed(0)  # as the contenders' weights
    prior, number = make().to(DEVICE).eval(), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    condition = condition_of(prior, batch, shape)
    for name, codes in outputs.items():
        if codes is None:  # the naive loop, cut short
            continue
        noise = gumbel(seed, number, torch.arange(codes[0].numel(), device=DEVICE), prior.num_embeddings)[0]
        own = part_of(prior, condition, (1, *codes.shape[1:]))
        with torch.no_grad():
            logits = prior(codes[:1], condition=own)[0].flatten(1).T.double()
        agree = ((logits + noise).argmax(1) == codes[0].flatten()).double().mean()
        assert agree > (0.9 if "bfloat16" in name else 0.99), f"{name}: {agree:.1%} of the codes are right"


def floor(prior: CausalPrior, batch: int, shape: tuple[int, ...]) -> Floor:
    """The products of visible taps, and on a CPU the weights' way: at each chunk, and at each moment."""
    program, weights = prior.lower()
    grid = (1, *shape)[-2:]
    front = wavefront(program, weights, *grid) if batch <= native._IN_WAVES else raster(program, *grid)
    early, late = weights_read(program, weights)
    parts = []
    for numbers, times, every in (
        (early, front.moments / front.chunk, program.condition_stride),
        (late, front.moments, 1),
    ):
        flop = 2.0 * batch * torch.Size(shape).numel() * numbers / every
        parts.append(Weights(flop, 4 * numbers, times))
    read = tuple(part for part in parts if part.bytes and DEVICE.type == "cpu")
    return Floor(sum(part.flop for part in parts), weights=read)


def sampling(
    name: str,
    make: Callable[[], CausalPrior],
    batch: int,
    shape: tuple[int, ...],
    sizes: dict[str, int] | None = None,
    sweep: str | None = None,
) -> Case:
    """``batch`` samples of ``shape``. ``sizes`` are the prior's, by the names of the plots' axes."""
    positions = torch.Size(shape).numel()
    by = partial(sampler, make, batch, shape)
    contenders = {
        "vqfast": partial(by, "auto", torch.float32),
        "naive": partial(naive, make, batch, shape),
        "cached": partial(cached, make, batch, shape),
        "vqfast, bfloat16 weights": partial(by, "auto", torch.bfloat16),
        REDUCED: partial(by, "auto", torch.float32, BFLOAT16),
    }
    if sweep or DEVICE.type == "cuda":  # on a GPU a prior in bfloat16 is the fast one
        del contenders[REDUCED]
    if sweep:
        del contenders["vqfast, bfloat16 weights"]
    return Case(
        name=f"{name}, batch {batch}",
        shape={"batch": batch, "grid": shape[-1], **(sizes or {})},
        contenders=contenders,
        data=lambda: int(torch.randint(2**31, ())),
        check=partial(check, make, batch, shape),
        floor=floor(make(), batch, shape),
        parts={"naive": naive_positions(shape) / positions, "cached": first_rows(shape)[0] / shape[0]},
        sweep=sweep,
    )


def one_row_at_a_time(make: Callable[[], CausalPrior], batch: int, shape: tuple[int, ...]) -> Call:
    """The sampler of a single sample in raster order."""
    draw = sampler(make, batch, shape, "auto", torch.float32)

    def run(seed: int) -> object:
        before, native._IN_WAVES = native._IN_WAVES, 0
        try:
            return draw(seed)
        finally:
            native._IN_WAVES = before

    return run


def wide(channels: int, layers: int, side: int) -> Case:
    """One sample of a grid wide enough for rows side by side."""
    case = gated(channels, layers, side, 1)
    one_by_one = partial(one_row_at_a_time, partial(vqfast.PixelCNN, 512, channels, layers), 1, (side, side))
    kept = {name: case.contenders[name] for name in ("vqfast", "naive")}
    return replace(case, contenders={**kept, ONE_BY_ONE: one_by_one})


def gated(
    channels: int, layers: int, side: int, batch: int, sweep: str | None = None, *, full: bool = False
) -> Case:
    """The gated PixelCNN, K 512; with ``full`` a case of the full form alone."""
    make = partial(vqfast.PixelCNN, 512, channels, layers)
    name = f"gated {side}x{side}, {channels} channels, {layers} layers"
    case = sampling(name, make, batch, (side, side), {"layers": layers}, sweep)
    return replace(case, slow=("vqfast",)) if full else case


def traced(channels: int, layers: int, side: int, batch: int) -> Case:
    """The gated network in plain PyTorch by ``program_of``, and the ``PixelCNN`` that lowers itself.

    The naive loop is that of the plain network.
    """
    lowered = partial(vqfast.PixelCNN, 512, channels, layers)
    shape = (side, side)

    def make() -> CausalPrior:
        prior, plain = lowered(), PlainGated(512, channels, layers)  # the prior first: seeded as in the check
        plain.load(prior)
        return vqfast.program_of(plain.eval(), 512, shape)

    return Case(
        name=f"program_of, gated {side}x{side}, {channels} channels, {layers} layers, batch {batch}",
        shape={"batch": batch, "grid": side, "layers": layers},
        contenders={
            "vqfast": partial(sampler, make, batch, shape, "auto", torch.float32),
            "naive": partial(naive, make, batch, shape),
            "vqfast, PixelCNN": partial(sampler, lowered, batch, shape, "auto", torch.float32),
        },
        data=lambda: int(torch.randint(2**31, ())),
        check=partial(check, lowered, batch, shape),
        floor=floor(lowered(), batch, shape),
        parts={"naive": naive_positions(shape) / side**2},
    )


def snail(blocks: int, heads: int, side: int, batch: int) -> Case:
    """PixelSNAIL, K 512, 128 channels, blocks of 4 layers; without attention conditioned on a map."""
    channels = 0 if heads else 64
    make = partial(vqfast.PixelSNAIL, 512, 128, blocks, 4, num_heads=heads, condition_channels=channels)
    kind = f"{blocks} attentions" if heads else "conditioned, no attention"
    case = sampling(f"PixelSNAIL {side}x{side}, 128 channels, {kind}", make, batch, (side, side))
    if heads:
        whole = partial(sampler, make, batch, (side, side), "torch", torch.float32)
        parts = {"naive": case.parts["naive"]}
        return replace(case, contenders={**case.contenders, "cached": whole}, parts=parts, slow=("cached",))
    contenders = {name: case.contenders[name] for name in ("vqfast", "naive")}
    return replace(case, contenders=contenders, slow=("vqfast",))  # minutes


def pixelcnn_pp(channels: int, layers: int, side: int) -> Case:
    """PixelCNN++ of grey images in plain PyTorch, by ``program_of``; a single image."""
    shape = (side, side)

    def make() -> CausalPrior:
        network = PlainPixelCNNPP(channels, layers, mixtures=10).eval()
        return vqfast.program_of(network, 256, shape, num_mixtures=10)

    def check(seed: int, outputs: Outputs) -> None:
        torch.manual_seed(0)  # as the contenders' weights
        network = PlainPixelCNNPP(channels, layers, mixtures=10).to(DEVICE).eval()
        draw = Draw(seed, torch.zeros(1, dtype=torch.int64, device=DEVICE))
        noise = draw.noise(0, side**2, 11)[0]
        for name, codes in outputs.items():
            if codes is not None:  # the naive loop is cut short
                with torch.no_grad():
                    parameters = network(codes)[0].flatten(1).T
                drawn = draw_value(draw, parameters, noise, noise, 256)
                agree = (drawn == codes.flatten()).double().mean()
                assert agree > 0.99, f"{name}: {agree:.1%} of the codes are right"

    return Case(
        name=f"program_of, PixelCNN++ {side}x{side}, {channels} channels, {layers} layers, batch 1",
        shape={"batch": 1, "grid": side, "layers": layers},
        contenders={
            "vqfast": partial(sampler, make, 1, shape, "auto", torch.float32),
            "naive": partial(naive, make, 1, shape),
        },
        data=lambda: int(torch.randint(2**31, ())),
        check=check,
        parts={"naive": naive_positions(shape) / side**2},
        slow=("vqfast",),  # half a minute: two networks are traced
    )


CASES = [
    gated(128, 15, 32, 1),
    traced(128, 15, 32, 1),
    gated(128, 15, 32, 16),
    wide(128, 15, 64),
    gated(64, 15, 8, 1),
    gated(64, 15, 8, 64),
    snail(4, 8, 32, 1),
    pixelcnn_pp(160, 5, 32),  # the paper's
    snail(4, 0, 64, 16),
    sampling("Keras 7x7, K 128", vqfast.ResidualPixelCNN, 1, (7, 7)),
    sampling("Keras 7x7, K 128", vqfast.ResidualPixelCNN, 256, (7, 7)),
    sampling("WaveNet 16000 steps, K 256, 64 channels, 30 layers", vqfast.WaveNet, 1, (16000,)),
]
# Along each axis a quick run has three points.
CASES += [gated(64, 15, 8, 2**n, "batch", full=n not in (0, 3, 6)) for n in range(7)]
CASES += [gated(64, 15, side, 4, "grid", full=side == 32) for side in (4, 8, 16, 32)]
CASES += [gated(64, layers, 8, 4, "layers", full=layers in (4, 16)) for layers in (2, 4, 8, 16, 32)]


def findings(*, full: bool) -> dict[str, dict[str, dict[str, str]]]:
    """What less precision costs."""
    return precision.findings(full)
