"""A VQ-VAE whose decoder tells vectors from each code and those beside it.

Codes that are read with their neighbours needn't tell everything alone: here they learn to share it. The
encoder sees one code's place, and a little around it, so that neighbours see different things.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speech_codes import BESIDE, K
from benchmarks.speech_data import parts_of
from vqfast import VQLayer

CHANNELS, DIM, DROPOUT, NOISE, DECAY = 256, 32, 0.2, 0.2, 0.97
BATCH, CODES, LR = 32, 32, 2e-3


class Context(nn.Module):
    """Spectra ``(B, inputs, T)`` of each code's place to vectors ``(B, outputs, T)``, by codes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in (inputs, CHANNELS):
            layers += [nn.Conv1d(size, CHANNELS, 1), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Dropout(DROPOUT)]
        self.encoder = nn.Sequential(*layers, nn.Conv1d(CHANNELS, DIM, 1), nn.BatchNorm1d(DIM, affine=False))
        self.vq = VQLayer(K, DIM, decay=DECAY)
        self.decoder = nn.Sequential(
            nn.Conv1d(DIM, CHANNELS, 2 * BESIDE + 1, padding=BESIDE),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Conv1d(CHANNELS, outputs, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = self.vq(self.encoder(x + NOISE * torch.randn_like(x)))
        return self.decoder(quantized), loss


def learned(spectra: list[Tensor], wanted: list[Tensor], steps: int, seed: int) -> Context:
    """A model that learned to tell ``wanted`` of each recording, ``(D, T)``, from ``spectra``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Context(len(spectra[0]), len(wanted[0]))
    optimizer = torch.optim.AdamW(net.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        shown, told = parts_of(rng, BATCH, CODES, spectra, wanted)
        result, loss = net(shown)
        optimizer.zero_grad()
        (F.mse_loss(result, told) + loss).backward()
        optimizer.step()
        schedule.step()
    return net.eval()
