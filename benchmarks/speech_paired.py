"""Codes from pairs: places of recordings that say the same get codes that tell the same, whoever speaks.

Places that sound alike, and so do the places beside them, mostly have the same phone, even of two speakers. A
network learns vectors that are near for the two places of a pair, and far for all others: what differs within
pairs is lost, which is who speaks. Its vectors find better pairs, and are averaged along them. The VQ-VAE of
``speech_context`` learns to tell these averages. Texts aren't used.

Source of the loss: van den Oord et al. 2018 (arXiv 1807.03748).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import speech_context
from benchmarks.speech_codes import around
from benchmarks.speech_data import Utterances
from benchmarks.speech_vectors import Vectors

WINDOWS, BAND_DIRECTIONS = 8, 24  # of the first vectors, before a network gives better ones
SEEN, CHANNELS, DIM, DROPOUT, NOISE = 16, 256, 32, 0.2, 0.2  # windows that the network sees, its sizes
BATCH, LR, NEARNESS = 512, 4e-3, 0.1
BESIDE_FIRST, BESIDE = 3, 2  # places on either side that pairs across speakers must share, by round
NEAREST, APART = 2, 8  # pairs of a place within its speaker, which are so many places apart
SHARES = {"same": 0.7, "other": 0.5, "next": 0.5}  # of the pairs, the nearest ones that are taken
WEIGHTS = {"same": 1, "other": 2, "next": 1}  # how many of a batch are of these pairs
ROUNDS, QUERIES, AVERAGED = 2, 2000, 6
SHOWN = 6  # windows that the VQ-VAE sees of each code

Pairs = tuple[Tensor, Tensor]


class Places(NamedTuple):
    """All codes of the training recordings: who speaks, and in which recording, int64 ``(N,)``."""

    speakers: Tensor
    recordings: Tensor


def beside(rows: list[Tensor], count: int) -> Tensor:
    """Of all recordings each vector with so many on either side: ``(N, D * (2 * count + 1))``."""
    padded = [F.pad(row.T, (count, count)) for row in rows]
    return torch.cat([row.unfold(1, 2 * count + 1, 1).transpose(0, 1).flatten(1) for row in padded])


def nearest(vectors: Tensor, places: Places, across: bool) -> Pairs:
    """The nearest places of each place: of its own speaker or, ``across``, one of each other speaker."""
    found: list[tuple[Tensor, Tensor]] = []
    count = int(places.speakers.max()) + 1
    groups = [(places.speakers == speaker).nonzero()[:, 0] for speaker in range(count)]
    for a in range(count):
        for b in range(count):
            if (a != b) != across:
                continue
            own, others = groups[a], groups[b]
            parts = []
            for asked in own.split(QUERIES):
                distances = torch.cdist(vectors[asked], vectors[others])
                if not across:
                    distances[(asked[:, None] - others).abs() < APART] = torch.inf
                parts.append(distances.topk(1 if across else NEAREST, largest=False))
            far = torch.cat([part.values for part in parts]).flatten()
            near = others[torch.cat([part.indices for part in parts])].flatten()
            asked = own.repeat_interleave(len(near) // len(own))
            kept = far <= far.quantile(SHARES["other" if across else "same"])
            found.append((asked[kept], near[kept]))
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])


def next_to(vectors: list[Tensor], places: Places) -> Pairs:
    """Neighbours in time that sound alike: mostly two places of one phone."""
    joined = torch.cat(vectors)
    first = torch.arange(len(joined) - 1)
    first = first[places.recordings[:-1] == places.recordings[1:]]
    far = (joined[first] - joined[first + 1]).norm(dim=1)
    first = first[far <= far.quantile(SHARES["next"])]
    return first, first + 1


class Paired(nn.Module):
    """Windows round a code ``(N, MELS * SEEN)`` to vectors of length 1, ``(N, DIM)``."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in (inputs, CHANNELS):
            layers += [nn.Linear(size, CHANNELS), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Dropout(DROPOUT)]
        self.layers = nn.Sequential(*layers, nn.Linear(CHANNELS, DIM))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + NOISE * torch.randn_like(x)
        return F.normalize(self.layers(x), dim=1)


def told_apart(a: Tensor, b: Tensor) -> Tensor:
    """The loss of telling the partner of each vector from all others of the batch."""
    return F.cross_entropy(a @ b.T / NEARNESS, torch.arange(len(a)))


def trained(inputs: Tensor, pairs: dict[str, Pairs], steps: int) -> Paired:
    """A network that learned from pairs."""
    net = Paired(inputs.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    weight = sum(WEIGHTS[kind] for kind in pairs)
    for _ in range(steps):
        drawn = []
        for kind, (one, two) in pairs.items():
            numbers = torch.randint(len(one), (BATCH * WEIGHTS[kind] // weight,))
            drawn.append(torch.stack([one[numbers], two[numbers]]))
        a, b = net(inputs[torch.cat(drawn, 1).flatten()]).chunk(2)
        optimizer.zero_grad()
        (told_apart(a, b) + told_apart(b, a)).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def averaged(vectors: Tensor, pairs: list[Pairs]) -> Tensor:
    """Vectors that go half way to the mean of their partners, so many times."""
    a = torch.cat([torch.cat([one, two]) for one, two in pairs])
    b = torch.cat([torch.cat([two, one]) for one, two in pairs])
    count = torch.bincount(a, minlength=len(vectors)).unsqueeze(1)
    for _ in range(AVERAGED):
        mean = torch.zeros_like(vectors).index_add(0, a, vectors[b]) / count.clamp(min=1)
        vectors = torch.where(count > 0, (vectors + mean) / 2, vectors)
    return vectors


@torch.no_grad()
def paired(
    train: Utterances, held_out: Utterances, steps: tuple[int, int], seed: int, across: bool = True
) -> Vectors:
    """What the VQ-VAE encodes, and its code vectors.

    Args:
        steps: of each round, and of the VQ-VAE.
        across: whether places of two speakers make pairs; else those of one speaker must be alike with
            their neighbours, as those of two must.
    """
    torch.manual_seed(seed)
    first = [around(mels, WINDOWS) for mels in train.mels]
    directions = torch.linalg.eigh(torch.cov(torch.cat(first).T))[1][:, -BAND_DIRECTIONS:]
    bands = [x @ directions for x in first]
    lengths = [len(x) for x in bands]
    repeats = torch.tensor(lengths)
    places = Places(
        train.speakers.repeat_interleave(repeats), torch.arange(len(bands)).repeat_interleave(repeats)
    )
    seen = [around(mels, SEEN) for mels in train.mels]
    pairs = {"same": nearest(torch.cat(bands), places, False), "next": next_to(bands, places)}
    refined = "other" if across else "same"
    vectors, reach = bands, BESIDE_FIRST
    for _ in range(ROUNDS):
        pairs[refined] = nearest(beside(vectors, reach), places, across)
        with torch.enable_grad():
            net = trained(torch.cat(seen), pairs, steps[0])
        vectors, reach = [net(x) for x in seen], BESIDE
    pairs[refined] = nearest(beside(vectors, reach), places, across)
    both = torch.cat([x / x.std(0).mean() for x in map(torch.cat, (bands, vectors))], 1)
    alike = averaged(both, [found for kind, found in pairs.items() if kind != "next"])
    alike = (alike - alike.mean(0)) / alike.std(0).mean()
    spectra = [[around(mels, SHOWN).T for mels in u.mels] for u in (train, held_out)]
    with torch.enable_grad():
        told = speech_context.learned(spectra[0], [x.T for x in alike.split(lengths)], steps[1], seed)
    encoded = [[told.encoder(x[None])[0].T for x in part] for part in spectra]
    return Vectors(encoded[0], encoded[1], told.vq.codebook.detach())
