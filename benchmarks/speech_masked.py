"""Codes from masked prediction: a network tells the clusters of hidden spectra, its vectors become codes.

Spectra are alike for many reasons, and a phone is only one of them. A network that must tell hidden spectra
from those around them learns which are said in the same places. K-means of its vectors gives the codes.

Source: Hsu et al. 2021, "HuBERT" (arXiv 2106.07447), in small: convolutions, and two rounds.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speech_codes import K, around
from benchmarks.speech_data import FRAMES, MELS, Utterances, parts_of
from benchmarks.speech_vectors import Vectors
from vqfast.nn.kmeans import kmeans

CHANNELS, BLOCKS, LAYER, DROPOUT = 96, 4, 3, 0.2
CLUSTERS, ROUNDS, WINDOWS = 256, 2, 8  # windows of the first clusters
BATCH, CODES, LR = 32, 32, 2e-3
HIDDEN, SPAN, SHOWN_WEIGHT = 0.4, 3, 0.5  # share, codes of a gap, weight of the places that were shown
DIRECTIONS = 32  # of the hidden vectors that k-means sees


class Block(nn.Module):
    """A gated residual convolution."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CHANNELS)
        self.conv = nn.Conv1d(CHANNELS, 2 * CHANNELS, 3, padding=dilation, dilation=dilation)
        self.output = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.dropout(F.glu(self.conv(self.norm(x)), 1), DROPOUT, self.training)
        result: Tensor = x + self.output(gated)
        return result


class Masked(nn.Module):
    """``(B, MELS * FRAMES, T)``, some places hidden, to the logits of their clusters."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.Parameter(0.1 * torch.randn(MELS * FRAMES, 1))
        self.enter = nn.Conv1d(MELS * FRAMES, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(Block(1 + number % 2) for number in range(BLOCKS))
        self.norm = nn.BatchNorm1d(CHANNELS)
        self.output = nn.Conv1d(CHANNELS, CLUSTERS, 1)

    def vectors(self, x: Tensor, blocks: int) -> Tensor:
        """What comes out of the first blocks: ``(B, CHANNELS, T)``."""
        x = F.dropout(self.enter(x), DROPOUT, self.training)
        for number in range(blocks):
            x = self.blocks[number](x)
        return x

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = torch.where(hidden.unsqueeze(1), self.gap, x)
        logits: Tensor = self.output(F.relu(self.norm(self.vectors(x, BLOCKS))))
        return logits

    def shares(self, x: Tensor) -> Tensor:
        """Square roots of the clusters' probabilities, nothing hidden: ``(D, T)`` to ``(T, CLUSTERS)``."""
        logits: Tensor = self(x[None], torch.zeros(1, x.shape[1], dtype=torch.bool))
        return logits[0].T.softmax(1).sqrt()


def spectra_of(utterances: Utterances) -> list[Tensor]:
    """Of each recording all bands of all windows of each code, ``(MELS * FRAMES, T)``."""
    return [m.unflatten(1, [-1, FRAMES]).transpose(1, 2).flatten(0, 1) for m in utterances.mels]


def gaps(rng: np.random.Generator) -> Tensor:
    """Which places are hidden: bool ``(BATCH, CODES)``."""
    starts = torch.from_numpy(rng.random((BATCH, CODES)) < HIDDEN / SPAN).float()
    hidden: Tensor = F.max_pool1d(F.pad(starts.unsqueeze(1), (SPAN - 1, 0)), SPAN, 1).squeeze(1) > 0
    return hidden


def trained(spectra: list[Tensor], clusters: list[Tensor], steps: int, rng: np.random.Generator) -> Masked:
    """A network that learned to tell the clusters."""
    net = Masked()
    optimizer = torch.optim.AdamW(net.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        shown, wanted = parts_of(rng, BATCH, CODES, spectra, clusters)
        hidden = gaps(rng)
        errors = F.cross_entropy(net(shown, hidden), wanted, reduction="none")
        loss = (errors * hidden).sum() / hidden.sum() + SHOWN_WEIGHT * (errors * ~hidden).sum() / (
            ~hidden
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def hidden_vectors(net: Masked, parts: list[list[Tensor]]) -> list[list[Tensor]]:
    """Of each part the vectors of each recording, ``(T, DIRECTIONS)``.

    Each channel has mean 0 and standard deviation 1 over the first part. The directions are those in which
    the vectors differ most.
    """
    found = [[net.vectors(x[None], LAYER)[0].T for x in part_] for part_ in parts]
    joined = torch.cat(found[0])
    mean, scale = joined.mean(0), joined.std(0) + 1e-3
    directions = torch.linalg.eigh(torch.cov(((joined - mean) / scale).T))[1][:, -DIRECTIONS:]
    return [[(x - mean) / scale @ directions for x in part_] for part_ in found]


def masked(train: Utterances, held_out: Utterances, steps: int, seed: int) -> Vectors:
    """The hidden vectors of the last round, and the centres of k-means on them."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    spectra = [spectra_of(u) for u in (train, held_out)]
    vectors = [[around(mels, WINDOWS) for mels in u.mels] for u in (train, held_out)]
    for _ in range(ROUNDS):
        centres = kmeans(torch.cat(vectors[0]), CLUSTERS, seed=seed)
        net = trained(spectra[0], [torch.cdist(x, centres).argmin(1) for x in vectors[0]], steps, rng)
        vectors = hidden_vectors(net, spectra)
    return Vectors(vectors[0], vectors[1], kmeans(torch.cat(vectors[0]), K, seed=seed))
