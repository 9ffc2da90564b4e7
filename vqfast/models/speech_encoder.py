"""Encoders of waveforms, and the decoder of their log-mel spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.models.batch_norm import BatchNorm2d
from vqfast.models.mu_law import mu_law_squeeze
from vqfast.nn.residual_block import ResidualBlock

MEL_BREAK, MEL_HEIGHT = 700.0, 2595.0  # hertz, and mels a decade of (1 + f / 700)
LOG_FLOOR, LOG_MEAN, LOG_SCALE = 1e-5, -4.0, 4.0  # brings the logarithms to about -2 to 2
MOMENTUM = 0.3  # of the averages over batches


class LogMel(nn.Module):
    """Log-mel spectrogram: ``(B, 1, T)`` to ``(B, num_mels, T / hop)``.

    Triangular filters on the power of Hann windows of 2.5 hops, evenly spaced in mels up to half the rate.

    Args:
        num_mels: bands.
        hop: samples from one window to the next.
        rate: samples a second of the waveforms.
    """

    def __init__(self, num_mels: int, hop: int, rate: int) -> None:
        super().__init__()
        self.hop, self.window_size = hop, max(16, hop * 5 // 2)
        self.register_buffer("window", torch.hann_window(self.window_size), persistent=False)
        bins = torch.linspace(0, rate / 2, self.window_size // 2 + 1)
        top = MEL_HEIGHT * math.log10(1 + rate / 2 / MEL_BREAK)
        edges = MEL_BREAK * (10 ** (torch.linspace(0, top, num_mels + 2) / MEL_HEIGHT) - 1)
        low, centre, high = (edges[i : i + num_mels, None] for i in range(3))
        filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
        self.register_buffer("filters", filters, persistent=False)
        self.window: Tensor
        self.filters: Tensor

    def forward(self, x: Tensor) -> Tensor:
        beyond = self.window_size - self.hop
        x = F.pad(x.squeeze(1), (beyond // 2, beyond - beyond // 2))
        spectrum = torch.fft.rfft(x.unfold(1, self.window_size, self.hop) * self.window)
        mels: Tensor = spectrum.abs().square() @ self.filters.T / self.window_size
        return ((mels + LOG_FLOOR).log() - LOG_MEAN).transpose(1, 2) / LOG_SCALE


class Squeezed(nn.Module):
    """Samples in the mu-law of 256 values: quiet sounds fill as much of [-1, 1] as loud ones.

    The first convolutions are nearly linear. Of samples as they are, a few loud pulses would give vectors far
    from all others, which would have one code.
    """

    def forward(self, x: Tensor) -> Tensor:
        return mu_law_squeeze(x, 256)


class Normalised(nn.Module):
    """Batch normalisation of ``(B, C, T)`` without learned scale and shift.

    A WaveNet knows much of a sample from those before it, so that at first codes get little gradient; the
    commitment loss alone would pull all vectors to one code. Vectors of a fixed variance can't go there.

    The scale of ``x`` is free and may become tiny, so the averages of means and variances don't start from 1:
    they are divided by the weight of the batches that they have seen. They are averages of few batches: early
    in training the mean moves by as much as the standard deviation in ten steps.

    Source: Lancucki et al. 2020, "Robust Training of Vector Quantized Bottleneck Models" (arXiv 2005.08520).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels).requires_grad_(False)
        self.norm.eps, self.norm.momentum = 1e-12, MOMENTUM
        self._statistics()[1].zero_()

    def _statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        norm: Any = self.norm  # torch's annotations leave these optional
        return norm.running_mean, norm.running_var, norm.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            normalised: Tensor = self.norm(x.unsqueeze(2))
            return normalised.squeeze(2)
        mean, var, count = self._statistics()
        seen = 1 - torch.full_like(mean, 1 - MOMENTUM) ** count
        scale = torch.where(count > 0, (var / seen + self.norm.eps).rsqrt(), 1)
        centre = torch.where(count > 0, mean / seen, 0)
        return (x - centre[:, None]) * scale[:, None]


class MelDecoder(nn.Module):
    """The mirror image of an encoder without its ``LogMel``: code vectors and speakers to log-mels.

    Args:
        strides: those of the encoder; the first is the hop of its ``LogMel``.
        num_classes: the number of speakers, or None.
    """

    def __init__(
        self,
        strides: Sequence[int],
        hidden_channels: int,
        num_residual_blocks: int,
        embedding_dim: int,
        num_mels: int,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        channels, self.hop = hidden_channels, strides[0]
        self.speakers = nn.Embedding(num_classes, channels) if num_classes else None
        self.enter = nn.Conv1d(embedding_dim, channels, 3, padding=1)
        layers: list[nn.Module] = [
            ResidualBlock(nn.Conv1d, channels, channels) for _ in range(num_residual_blocks)
        ]
        for stride in reversed(strides[1:]):
            window = 2 * stride + stride % 2
            padding = (window - stride) // 2
            layers += [nn.ReLU(), nn.ConvTranspose1d(channels, channels, window, stride, padding)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv1d(channels, num_mels, 3, padding=1))

    def forward(self, quantized: Tensor, labels: Tensor | None) -> Tensor:
        """``(B, D, T)`` and ``(B,)`` -> ``(B, num_mels, T * product of the other strides)``."""
        x = self.enter(quantized)
        if self.speakers is not None:
            x = x + self.speakers(labels).unsqueeze(2)
        mels: Tensor = self.layers(x)
        return mels

    def error(self, quantized: Tensor, labels: Tensor | None, mels: Tensor, lengths: Tensor | None) -> Tensor:
        """The mean squared error of log-mels ``(B, num_mels, T)`` of waveforms of these lengths."""
        errors = (self.forward(quantized, labels) - mels).square().mean(1)
        if lengths is None:
            return errors.mean()
        shown = counting(errors.shape[1], self.hop, lengths)
        return (errors * shown).sum() / shown.sum()


def counting(count: int, step: int, lengths: Tensor) -> Tensor:
    """Which positions count, ``step`` samples apart in waveforms of these lengths: bool ``(B, count)``."""
    return torch.arange(count, device=lengths.device) * step < lengths.unsqueeze(1)


def speech_encoder(
    strides: Sequence[int],
    hidden_channels: int,
    num_residual_blocks: int,
    embedding_dim: int,
    num_mels: int | None,
    rate: int,
) -> nn.Sequential:
    """``(B, 1, T)`` to ``(B, embedding_dim, T / product of strides)``.

    A convolution of stride s has a window of 2 s, as the paper's window 4 for stride 2, and one more for an
    odd stride; all but the last are followed by a ReLU. With ``num_mels`` the first stride is the hop of a
    ``LogMel``; samples are ``Squeezed`` otherwise. The output is ``Normalised``.
    """
    layers: list[nn.Module] = [Squeezed()]
    channels, rest = 1, list(strides)
    if num_mels is not None:
        layers = [LogMel(num_mels, rest.pop(0), rate), nn.Conv1d(num_mels, hidden_channels, 3, padding=1)]
        channels = hidden_channels
    for stride in rest:
        window = 2 * stride + stride % 2
        layers += [nn.ReLU()] if len(layers) > 1 else []
        layers.append(nn.Conv1d(channels, hidden_channels, window, stride, (window - stride) // 2))
        channels = hidden_channels
    blocks = [ResidualBlock(nn.Conv1d, channels, channels) for _ in range(num_residual_blocks)]
    last = nn.Conv1d(channels, embedding_dim, 1, bias=False)
    return nn.Sequential(*layers, *blocks, nn.ReLU(), last, Normalised(embedding_dim))


def encoder_reach(strides: Sequence[int], num_residual_blocks: int, num_mels: int | None) -> int:
    """Codes beside its own part of the waveform that a vector of ``speech_encoder`` depends on, at most.

    A convolution of stride s and window 2 s or 2 s + 1 reaches s + 1 of its inputs beyond its own s; the
    windows and the first convolution of a ``LogMel`` two hops beyond.
    """
    steps = [math.prod(strides[:i]) for i in range(len(strides) + 1)]  # samples from input to input
    first = 0 if num_mels is None else 1
    samples = sum(steps[i] + steps[i + 1] for i in range(first, len(strides)))
    samples += (2 * strides[0] + 8) * first
    return num_residual_blocks - (-samples // steps[-1])


def counted(x: Tensor, stride: int, lengths: Tensor | None) -> Tensor | None:
    """Which codes of waveforms ``(B, 1, T)`` count: bool ``(B, T / stride)``, or ``None`` for all.

    Raises:
        ValueError: ``lengths`` isn't ``(B,)``.
    """
    if lengths is None:
        return None
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; want ({len(x)},)")
    return counting(-(-x.shape[2] // stride), stride, lengths)
