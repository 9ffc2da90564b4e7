"""Drawing waveforms: a WaveNet over mu-law samples, with a condition at the rate of the codes.

The streams of a call times their length, divided by its seconds, are the times real time. "cached" is the
executor in plain PyTorch, "naive" the whole network for each sample; both are timed on their first samples,
the latter on a few streams, and scaled. Floor: as in ``sampling``; the condition is multiplied once a code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.core import Case
from benchmarks.sampling import naive, sampling
from vqfast.priors import WaveNet

RATE, STRIDE, CHANNELS, LAYERS = 16_000, 64, 64, 30
NAIVE_STREAMS = 4


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
    few = min(streams, NAIVE_STREAMS)
    return replace(
        case,
        contenders={**case.contenders, "naive": partial(naive, make, few, (length,))},
        parts={**case.parts, "naive": case.parts["naive"] * few / streams},
        check=case.check if num_mixtures is None else lambda seed, outputs: None,
    )


CASES = [waveform(1), waveform(64, RATE // 4), waveform(1, num_mixtures=10)]
