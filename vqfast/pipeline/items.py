"""Between items of data and codes: what the models of the different kinds of data need for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Dataset, Recordings
from vqfast.models import Autoencoder, SpeechVQVAE


def encode_items(
    vqvae: Autoencoder, dataset: Dataset, numbers: range, device: torch.device | str
) -> list[Tensor]:
    """The codes of the items of these numbers, for each level; -1 where a recording has ended."""
    x = dataset.batch(numbers).to(device)
    if isinstance(vqvae, SpeechVQVAE) and isinstance(dataset, Recordings):
        lengths = torch.from_numpy(dataset.lengths[numbers.start : numbers.stop])
        return [vqvae.encode(x, lengths=lengths)]
    return vqvae.encode_levels(x)


def decode_items(
    vqvae: Autoencoder, levels: Sequence[Tensor], labels: Tensor | None, numbers: range
) -> Tensor:
    """The items ``(n, C, *spatial)`` of codes.

    A model of speech draws them by their numbers, so that an item is the same in every batch. It gives the
    codes the voices of their labels; where they have none, the speakers take turns.
    """
    if not isinstance(vqvae, SpeechVQVAE):
        return vqvae.decode_levels(levels).clamp(*vqvae.value_range)
    (indices,) = levels
    ordered = torch.tensor(numbers)
    speakers = None
    if vqvae.num_classes is not None:
        speakers = ordered % vqvae.num_classes if labels is None else labels
    used = max(1, int((indices >= 0).any(0).nonzero().max()) + 1) if (indices >= 0).any() else 1
    waves = vqvae.decode(indices[:, :used], labels=speakers, numbers=ordered)
    return F.pad(waves, (0, (indices.shape[1] - used) * vqvae.stride))
