"""Drawing waveforms: a WaveNet over mu-law samples, with a condition at the rate of the codes.

One second of 16 kHz for each stream, so that the streams of a call divided by its seconds are the times real
time. "cached" is the executor in plain PyTorch, "naive" the whole network for each sample; both are timed on
their first samples, and scaled. Floor: the products of each sample, and those of the condition once a code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.core import Call, Case, Floor
from benchmarks.machine import DEVICE
from benchmarks.sampling import condition_of, sampling
from vqfast.priors import WaveNet
from vqfast.sampling.program import CODES, CONDITION

RATE, STRIDE, CHANNELS, LAYERS = 16_000, 64, 64, 30
CACHED = 400  # samples of the loop in PyTorch


def floor(network: WaveNet, streams: int, length: int) -> Floor:
    """The operations of streams of a length."""
    program, weights = network.lower()
    terms = [term for step in program.steps for term in step.terms if term.source != CODES and term.weight]
    sizes = [(weights[term.weight or ""].numel(), term.source == CONDITION) for term in terms]
    products = sum(size / (program.condition_stride if early else 1) for size, early in sizes)
    return Floor(2.0 * streams * length * products)


def waveform(
    streams: int,
    length: int = RATE,
    channels: int = CHANNELS,
    layers: int = LAYERS,
    num_mixtures: int | None = None,
) -> Case:
    """``streams`` waveforms, which know their codes; of ``length`` samples each."""
    sizes: dict[str, Any] = {
        "condition_channels": channels,
        "condition_stride": STRIDE,
        "num_mixtures": num_mixtures,
    }
    make = partial(WaveNet, 256, channels, layers, **sizes)
    kind = f"a mixture of {num_mixtures}" if num_mixtures else "256 values"
    name = f"{length / RATE:g} s of 16 kHz, {kind}, {channels} channels, {layers} layers"
    case = sampling(name, make, streams, (length,), {"layers": layers})
    cached = min(length, CACHED)

    def loop() -> Call:
        network = make().to(DEVICE).eval()
        condition = condition_of(network, streams, (cached,))

        def run(seed: int) -> None:
            network.sample(
                streams, (cached,), condition=condition, method="torch", batch_size=streams, seed=seed
            )

        return run

    return replace(
        case,
        contenders={**case.contenders, "cached": loop},
        floor=floor(make(), streams, length),
        parts={**case.parts, "cached": cached / length},
        check=case.check if num_mixtures is None else lambda seed, outputs: None,
    )


CASES = [waveform(1), waveform(64), waveform(1, num_mixtures=10)]
