"""Vectors that become codes: the nearest centre's, or codes that every speaker uses as often."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.speech_codes import Codes, K, around
from benchmarks.speech_data import Utterances
from vqfast.models import SpeechVQVAE
from vqfast.nn.kmeans import kmeans

ROUNDS, STEP, SLOWER = 60, 0.15, 15  # of the search for the bonuses of codes
SMALLEST = 1e-4  # a share


class Vectors(NamedTuple):
    """Vectors ``(T, D)`` of the training recordings and of the others, and centres ``(K, D)``."""

    train: list[Tensor]
    held_out: list[Tensor]
    centres: Tensor

    def distances(self) -> tuple[list[Tensor], list[Tensor]]:
        """Squared distances ``(T, K)`` of each recording."""
        parts = self.train, self.held_out
        found = [[torch.cdist(x, self.centres).square() for x in part] for part in parts]
        return found[0], found[1]

    def codes(self) -> Codes:
        """The codes of the nearest centres."""
        found = [[x.argmin(1).numpy() for x in part] for part in self.distances()]
        return found[0], found[1]

    def balanced(self, train: Utterances, held_out: Utterances) -> Codes:
        """Codes that every speaker uses as often in training.

        A code gets a bonus with each speaker, which its squared distances are lowered by: a larger one as
        long as this speaker uses the code less than all do on average.
        """
        distances = self.distances()
        bonuses = bonuses_of(distances[0], train.speakers.tolist())
        found: list[list[np.ndarray]] = [
            [(x - bonuses[s]).argmin(1).numpy() for x, s in zip(part, u.speakers.tolist(), strict=True)]
            for part, u in zip(distances, (train, held_out), strict=True)
        ]
        return found[0], found[1]


def bonuses_of(distances: list[Tensor], speakers: list[int]) -> Tensor:
    """What is taken from the squared distances of each speaker to each code, ``(speakers, K)``."""
    count = max(speakers) + 1
    own = [
        torch.cat([x for x, s in zip(distances, speakers, strict=True) if s == each]) for each in range(count)
    ]

    def shares(bonuses: Tensor) -> Tensor:
        used = [torch.bincount((x - b).argmin(1), minlength=K) for x, b in zip(own, bonuses, strict=True)]
        return torch.stack([u / u.sum() for u in used]) + SMALLEST

    bonuses = torch.zeros(count, K)
    wanted = shares(bonuses).mean(0)
    scale = torch.cat(own).amin(1).mean()
    for step in range(ROUNDS):
        lacking = (wanted / shares(bonuses)).log().clamp(-1, 1)
        bonuses += STEP * scale / (1 + step / SLOWER) * lacking
    return bonuses


def clustered(train: Utterances, held_out: Utterances, windows: int, seed: int) -> Vectors:
    """So many windows round the middle of each code, and the centres of k-means."""
    vectors = [[around(mels, windows) for mels in u.mels] for u in (train, held_out)]
    return Vectors(vectors[0], vectors[1], kmeans(torch.cat(vectors[0]), K, seed=seed))


@torch.no_grad()
def encoded(vqvae: SpeechVQVAE, train: Utterances, held_out: Utterances) -> Vectors:
    """What the encoder of a model makes of spectrograms, and its code vectors."""
    encoder = vqvae.encoder[1:]
    vectors = [[encoder(mels[None])[0].T for mels in u.mels] for u in (train, held_out)]
    return Vectors(vectors[0], vectors[1], vqvae.vq.codebook.detach())
