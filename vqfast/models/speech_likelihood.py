"""What a WaveNet's output says of samples in mu-law: their mean, and how likely given ones are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models.mu_law import mu_law_decode, mu_law_expand
from vqfast.models.speech_encoder import counting
from vqfast.priors.wavenet import WaveNet
from vqfast.sampling import mixture


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
