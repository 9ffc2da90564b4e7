"""Samples in mu-law and a WaveNet: how it starts, the mean that it tells, and how likely samples are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models.mu_law import mu_law_decode, mu_law_expand
from vqfast.models.speech_encoder import counting
from vqfast.priors.wavenet import WaveNet
from vqfast.sampling import mixture

ORDER, DISORDER = 3**0.5, 0.05  # of the line that values start on, and of what is beside it


def mean_of(wavenet: WaveNet, logits: Tensor) -> Tensor:
    """The mean of each sample ``(B, T)``."""
    num_values = wavenet.num_embeddings
    if wavenet.num_mixtures:
        weights, means, _ = logits.chunk(3, 1)
        return mu_law_expand((weights.softmax(1) * means.clamp(-1, 1)).sum(1), num_values)
    levels = mu_law_decode(torch.arange(num_values, device=logits.device), num_values, dtype=logits.dtype)
    return torch.einsum("bkt,k->bt", logits.softmax(1), levels)


def nats_of(wavenet: WaveNet, logits: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
    """``-log p(values)``, summed over the samples that count, ``(B,)``."""
    if wavenet.num_mixtures:
        nats = mixture.nats(logits, values, wavenet.num_embeddings, several=False)
    else:
        nats = F.cross_entropy(logits, values, reduction="none")
    return (nats if lengths is None else nats * counting(nats.shape[1], 1, lengths)).sum(1)


def nats_in_pieces(
    wavenet: WaveNet,
    values: Tensor,
    labels: Tensor | int | None,
    condition: Tensor,
    lengths: Tensor | None,
    piece: int,
) -> Tensor:
    """``nats_of`` what the WaveNet tells of ``values``, so many samples at a time."""
    stride, total = wavenet.condition_stride, condition.new_zeros(len(values))
    for first in range(0, values.shape[1], piece):
        begin, end = max(0, first - wavenet.reach) // stride * stride, min(first + piece, values.shape[1])
        seen = condition[:, :, begin // stride : -(-end // stride)]
        logits = wavenet(values[:, begin:end], labels, seen)[:, :, first - begin :]
        own = None if lengths is None else lengths - first
        total += nats_of(wavenet, logits, values[:, first:end], own)
    return total


@torch.no_grad()
def start_in_order(wavenet: WaveNet) -> None:
    """Values start along a line, as loud as they are: their order takes hundreds of steps to learn."""
    weight = wavenet.embedding.weight
    loud = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype)
    direction = ORDER * torch.randn_like(weight[0])
    weight.mul_(DISORDER).add_(loud[:, None] * direction)
