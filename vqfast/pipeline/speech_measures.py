"""Figures of a trained model of speech."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.data import Recordings
from vqfast.models import SpeechVQVAE
from vqfast.pipeline.measures import for_each
from vqfast.pipeline.ranks import ALONE, Ranks


def bits_per_sample(
    vqvae: SpeechVQVAE, dataset: Recordings, *, ranks: Ranks = ALONE, counts: Tensor | None = None
) -> Tensor:
    """How likely recordings are, given their codes and speakers: float64 ``(N,)``, in bits per sample.

    Args:
        counts: int64 ``(K,)``, to which the number of times that each code occurs is added.
    """

    def bits(numbers: range) -> Tensor:
        return torch.stack([of_one(number) for number in numbers])

    def of_one(number: int) -> Tensor:  # one at a time, without its padding: the logits are large
        x = dataset.recording(number).to(ranks.device)
        told = vqvae.num_classes is not None and dataset.labels is not None
        labels = int(dataset.labels[number]) if told and dataset.labels is not None else None
        indices = vqvae.encode(x)
        if counts is not None:
            counts.add_(indices.flatten().bincount(minlength=len(counts)))
        return vqvae.nats(x, indices, labels=labels)[0].double() / (x.shape[2] * math.log(2))

    return for_each(bits, len(dataset), ranks, "bits per sample")


def measure_speech(vqvae: SpeechVQVAE, dataset: Recordings, *, ranks: Ranks = ALONE) -> dict[str, float]:
    """How well a model knows recordings.

    Returns:
        ``bits_per_sample``, given the codes and the speakers, the mean over recordings; ``perplexity`` of the
        codes; and ``codes_in_use``, a share of the codebook.
    """
    counts = torch.zeros(vqvae.vq.num_embeddings, dtype=torch.int64, device=ranks.device)
    bits = bits_per_sample(vqvae, dataset, ranks=ranks, counts=counts)
    ranks.add_up([counts])
    shares = counts.double() / counts.sum()
    return {
        "bits_per_sample": bits.mean().item(),
        "perplexity": torch.special.entr(shares).sum().exp().item(),
        "codes_in_use": (counts > 0).double().mean().item(),
    }
