"""Between items of data and codes: what the models of the different kinds of data need for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Dataset, Recordings
from vqfast.data.protocol import BATCH, Piece
from vqfast.models import Autoencoder, SpeechVQVAE
from vqfast.sampling.draw import check_draw

STREAMS = 64  # recordings that are drawn together
SAMPLES = 1 << 24  # of all of them


def encode_items(
    vqvae: Autoencoder, dataset: Dataset, numbers: range, device: torch.device | str
) -> list[Tensor]:
    """The codes of the items of these numbers, for each level; -1 where a recording has ended.

    Recordings are encoded one by one, each in its own length.
    """
    if not (isinstance(vqvae, SpeechVQVAE) and isinstance(dataset, Recordings)):
        return vqvae.encode_levels(dataset.batch(numbers).to(device))
    ((longest,),) = vqvae.code_shapes(dataset.shape[1:])
    codes = (vqvae.encode(dataset.recording(number).to(device))[0] for number in numbers)
    return [torch.stack([F.pad(own, (0, longest - len(own)), value=-1) for own in codes])]


def check_temperature(vqvae: Autoencoder, temperature: float) -> None:
    """Checks the temperature of a decoder that draws; any other has none.

    Raises:
        TypeError, ValueError: see ``CausalPrior.sample``; or it isn't 1, and the decoder draws nothing.
    """
    check_draw(temperature, None, None, 0)
    if temperature != 1 and not isinstance(vqvae, SpeechVQVAE):
        raise ValueError(
            f"temperature is {temperature!r}; want 1: only recordings are drawn as they are decoded"
        )


def noted_temperature(temperature: float) -> dict[str, float]:
    """What a folder of decoded items notes of a temperature: nothing of 1, the only one of earlier ones."""
    return {} if temperature == 1 else {"temperature": temperature}


def decode_items(
    vqvae: Autoencoder,
    levels: Sequence[Tensor],
    labels: Tensor | None,
    numbers: Sequence[int],
    temperature: float = 1.0,
) -> Tensor:
    """The items ``(n, C, *spatial)`` of codes.

    A model of speech draws them by their numbers, so that an item is the same in every batch. It gives the
    codes the voices of their labels; where they have none, the speakers take turns. It draws those together
    that are about as long; behind the end of an item it is silent.
    """
    if not isinstance(vqvae, SpeechVQVAE):
        return vqvae.decode_levels(levels).clamp(*vqvae.value_range)
    (indices,) = levels
    waves = torch.zeros(len(indices), 1, indices.shape[1] * vqvae.stride, device=indices.device)
    for places, first, piece in spoken(vqvae, indices, labels, numbers, temperature):
        waves[places, :, first : first + piece.shape[2]] = piece.to(waves)
    return waves


@torch.no_grad()
def spoken(
    vqvae: SpeechVQVAE,
    indices: Tensor,
    labels: Tensor | None,
    numbers: Sequence[int],
    temperature: float = 1.0,
) -> Iterator[Piece]:
    """The recordings of codes ``(n, T)`` piece by piece, as ``decode_items`` says."""
    ordered, speakers = torch.tensor(numbers), None
    if vqvae.num_classes is not None:
        speakers = ordered % vqvae.num_classes if labels is None else labels
    ends = ends_of(indices)
    for places in ends.argsort(descending=True, stable=True).split(STREAMS):
        longest, first = max(1, int(ends[places[0]])), 0
        told = None if speakers is None else speakers[places.to(speakers.device)]
        for waves in vqvae.decode_pieces(
            indices[places, :longest],
            labels=told,
            numbers=ordered[places.cpu()],
            batch_size=STREAMS,
            temperature=temperature,
        ):
            yield Piece(places.tolist(), first, waves.cpu())
            first += waves.shape[2]


def ends_of(indices: Tensor) -> Tensor:
    """How many codes each sequence ``(n, T)`` has up to its last one that isn't -1: int64 ``(n,)``."""
    return ((indices >= 0) * torch.arange(1, indices.shape[1] + 1, device=indices.device)).amax(1)


def cut_to_codes(vqvae: Autoencoder, items: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """Decoded items ``(C, *spatial)``, recordings without the silence behind their codes."""
    if not isinstance(vqvae, SpeechVQVAE):
        return list(items)
    ends = ends_of(levels[0]).clamp(min=1) * vqvae.stride
    return [item[:, :end] for item, end in zip(items, ends.tolist(), strict=True)]


def together(vqvae: Autoencoder, grid: Sequence[int]) -> int:
    """How many items with such grids of codes are decoded together: fewer of long recordings."""
    if not isinstance(vqvae, SpeechVQVAE):
        return BATCH
    return max(1, min(BATCH, SAMPLES // (grid[0] * vqvae.stride)))
