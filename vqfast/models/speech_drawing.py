"""Waveforms that a model of speech draws, piece after piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from vqfast.checks import check_indices, check_integer
from vqfast.models.mu_law import mu_law_decode
from vqfast.nn import VQLayer
from vqfast.priors.wavenet import WaveNet
from vqfast.sampling.progress import Tick, check_progress, shown

BATCH = 64  # waveforms
SAMPLES = 1 << 16  # of a piece; the noise depends on it. Executors hold some 40 bytes for each
NUMBERS = 1 << 40  # from the number of a piece's noise to that of the next one


class DrawOptions(TypedDict, total=False):
    """The options of ``SpeechVQVAE.decode``.

    Example:
        >>> options: vqfast.models.DrawOptions = {"temperature": 0.9, "seed": 3}
        >>> model = vqfast.models.SpeechVQVAE(wavenet_channels=8, wavenet_layers=4).eval()
        >>> model.decode(torch.zeros(1, 2, dtype=torch.int64), **options).shape
        torch.Size([1, 1, 128])
    """

    labels: Tensor | int | None
    numbers: Tensor | None
    seed: int
    temperature: float
    precision: str | None
    method: str
    batch_size: int
    progress: Callable[[int], object] | bool


class Drawing(NamedTuple):
    """The parts of a ``SpeechVQVAE`` that draw."""

    vq: VQLayer
    conditioner: nn.Module
    wavenet: WaveNet


def drawn_pieces(model: Drawing, indices: Tensor, options: DrawOptions) -> Iterator[Tensor]:
    """See ``SpeechVQVAE.decode_pieces``."""
    check_indices("indices", indices, model.vq.num_embeddings, minimum=-1)
    if indices.ndim != 2 or indices.numel() == 0:
        raise ValueError(f"indices has shape {tuple(indices.shape)}; want (B, T), not empty")
    check_integer("batch_size", options.get("batch_size", BATCH))
    check_progress(options.get("progress", False))
    return _pieces(model, indices, **options)


def _pieces(
    model: Drawing,
    indices: Tensor,
    numbers: Tensor | None = None,
    batch_size: int = BATCH,
    progress: Tick | bool = False,
    **options: Any,
) -> Iterator[Tensor]:
    """A sample depends on so many samples before it, whose codes begin each piece as known ones.

    Each piece has noise of its own, that of samples of higher numbers.
    """
    (num, codes), stride = indices.shape, model.wavenet.condition_stride
    before = -(-model.wavenet.reach // stride)
    piece = max(1, SAMPLES // stride, before)
    numbers = torch.arange(num) if numbers is None else numbers
    known = indices.new_empty(num, 0)
    with shown(progress, num * codes * stride) as tick:
        for first in range(0, codes, piece):
            begin, end = max(0, first - before), min(first + piece, codes)
            condition = _condition(model, indices, begin, end)
            rest = indices.new_full((num, (end - first) * stride), -1)
            values = model.wavenet.sample(
                num,
                ((end - begin) * stride,),
                condition=condition,
                known=torch.cat([known, rest], 1),
                numbers=numbers + first // piece * NUMBERS,
                batch_size=batch_size,
                progress=_after(known.numel(), tick),
                **options,
            )
            known = values[:, -before * stride :]
            drawn = values[:, (first - begin) * stride :]
            waves = mu_law_decode(drawn, model.wavenet.num_embeddings, dtype=condition.dtype)
            sounding = (indices[:, first:end] >= 0).repeat_interleave(stride, 1).to(waves.device)
            yield waves.where(sounding, 0).unsqueeze(1)


@torch.no_grad()
def _condition(model: Drawing, indices: Tensor, begin: int, end: int) -> Tensor:
    """The map of these codes, which depends on their neighbours too: ``(B, C, end - begin)``."""
    first = max(0, begin - 1)
    condition: Tensor = model.conditioner(model.vq.decode(indices[:, first : end + 1]))
    return condition[:, :, begin - first :][:, :, : end - begin]


def _after(known: int, tick: Tick) -> Tick:
    """``tick`` for the samples that come after so many known ones."""
    done = -known

    def count(samples: int) -> None:
        nonlocal done
        before, done = max(0, done), done + samples
        tick(max(0, done) - before)

    return count
