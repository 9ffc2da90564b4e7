"""The hierarchical model of J. Ruseckas' notebook: a level at every resolution, each with a prior."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vqfast.models.architectures import batch_norm_block as block
from vqfast.models.architectures import doubling
from vqfast.models.levels import Level, LevelsEncoder
from vqfast.models.quantizers import MakeLayer


class _Level(Level):
    """A level whose state has ``channels`` channels, and starts at the coarsest as a learned constant.

    Args:
        size: the spatial size at the coarsest level, else ``None``.
    """

    def __init__(self, channels: int, size: int | None, make_layer: MakeLayer) -> None:
        super().__init__()
        latent = max(1, channels // 16)
        if size is None:
            self.upsample = nn.Sequential(
                nn.Upsample(scale_factor=2), block(2 * channels, channels, relu=False)
            )
        else:
            self.constant = nn.Parameter(torch.full((1, channels, size, size), 0.01))
        self.vq = make_layer(latent)
        if self.vq.heads != 1:  # the prior has one distribution for each position
            raise ValueError(f"heads is {self.vq.heads}; want 1 with architecture 'ruseckas-hierarchical'")
        self.prior = nn.Sequential(
            nn.ReLU(), block(channels, channels), nn.Conv2d(channels, self.vq.num_embeddings, 1)
        )
        self.project = block(channels, latent, relu=False)
        self.expand = block(latent, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def enter(self, state: Tensor | None, batch_size: int) -> Tensor:
        context: Tensor = (
            self.constant.expand(batch_size, -1, -1, -1) if state is None else self.upsample(state)
        )
        return context

    def vectors(self, features: Tensor, context: Tensor | None) -> Tensor:
        vectors: Tensor = self.project(features)
        return vectors

    def join(self, quantized: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        joined: Tensor = self.expand(quantized) + self.gamma * context
        return joined.relu()

    def stand_in(self, context: Tensor) -> Tensor:
        return self.vq.decode(self.logits(context).argmax(1))

    def logits(self, context: Tensor | None) -> Tensor:
        logits: Tensor = self.prior(context)
        return logits


def build_ruseckas_hierarchical(
    ndim: int,
    in_channels: int,
    make_layer: MakeLayer,
    *,
    num_levels: int,
    hidden_channels: int,
    image_size: int,
) -> tuple[nn.Module, list[Level], nn.Module]:
    """Encoder, levels from the coarsest, and decoder.

    Raises:
        ValueError: ``hidden_channels`` or ``image_size`` can't be halved so often.
    """
    widths = doubling(hidden_channels, num_levels)
    stride = 1 << (num_levels - 1)
    if image_size % stride:
        raise ValueError(f"image_size is {image_size}; want a multiple of 2 ** {num_levels - 1} = {stride}")
    stages = [block(in_channels, widths[0])]
    stages += [nn.Sequential(nn.MaxPool2d(2), block(*pair)) for pair in pairwise(widths)]
    levels: list[Level] = [_Level(widths[-1], image_size // stride, make_layer)]
    levels += [_Level(width, None, make_layer) for width in widths[-2::-1]]
    decoder = nn.Sequential(block(widths[0], in_channels, relu=False), nn.Sigmoid())
    return LevelsEncoder(stages), levels, decoder
