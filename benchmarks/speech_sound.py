"""Waveforms of log-mel spectrograms, without a network: what a fast decoder tells can be heard at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.models.speech_encoder import LOG_FLOOR, LOG_MEAN, LOG_SCALE, LogMel

UPDATES, ITERATIONS, MOMENTUM = 30, 30, 0.99


@torch.no_grad()
def waves_of(log_mel: LogMel, mels: Tensor, *, seed: int = 0) -> Tensor:
    """Waveforms ``(B, 1, T * hop)`` whose spectrograms are like ``mels (B, num_mels, T)``.

    The powers of all frequencies are the non-negative ones whose bands fit best (the multiplicative updates
    of Lee and Seung 2000). The phases are those of Griffin and Lim 1984, with the momentum of Perraudin et
    al. 2013: of a waveform's own spectrogram, again and again.
    """
    size, hop = log_mel.window_size, log_mel.hop
    bands = ((mels * LOG_SCALE + LOG_MEAN).exp() - LOG_FLOOR).clamp(min=0) * size  # (B, num_mels, T)
    filters = log_mel.filters  # (num_mels, bins)
    wanted = torch.einsum("mf,bmt->bft", filters, bands)
    powers = torch.full_like(wanted, 1e-3) + wanted
    for _ in range(UPDATES):
        powers = powers * wanted / (filters.T @ (filters @ powers) + 1e-9)
    lengths = F.pad(powers.sqrt(), (0, 1), mode="replicate")
    how: dict[str, Any] = {"n_fft": size, "hop_length": hop, "window": log_mel.window}
    generator = torch.Generator().manual_seed(seed)
    phases = torch.polar(torch.ones_like(lengths), 6.2832 * torch.rand(lengths.shape, generator=generator))
    before = torch.zeros_like(phases)
    for _ in range(ITERATIONS):
        waves = torch.istft(lengths * phases, **how)
        found = torch.stft(waves, **how, return_complex=True)[..., : lengths.shape[2]]
        ahead = found + MOMENTUM * (found - before)
        phases, before = ahead / ahead.abs().clamp(min=1e-9), found
    waves = torch.istft(lengths * phases, **how)
    beside = hop // 2  # windows of ``LogMel`` begin half a hop later
    return F.pad(waves, (beside, 0))[:, : mels.shape[2] * hop].clamp(-1, 1).unsqueeze(1)
