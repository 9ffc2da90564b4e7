"""VQ-VAE-2: levels that are quantised from the coarsest, each conditioned on the coarser ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from vqfast.models.levels import Level, LevelsEncoder
from vqfast.models.quantizers import MakeLayer
from vqfast.nn.residual_block import ResidualBlock, convolutions


def residual_stack(
    conv: Callable[..., nn.Module], channels: int, residual_channels: int, num_residual_blocks: int
) -> list[nn.Module]:
    """Residual blocks and a ReLU."""
    blocks = (ResidualBlock(conv, channels, residual_channels) for _ in range(num_residual_blocks))
    return [*blocks, nn.ReLU()]


class _Level(Level):
    """A level whose state is the code vectors of all coarser levels and its own, ``(B, n * D, *spatial)``.

    Args:
        num_coarser: the number of coarser levels.
    """

    def __init__(
        self,
        ndim: int,
        num_coarser: int,
        make_layer: MakeLayer,
        *,
        hidden_channels: int,
        residual_channels: int,
        num_residual_blocks: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        conv, transposed = convolutions(ndim)
        coarser, conditioned = num_coarser * embedding_dim, hidden_channels
        if num_coarser:
            self.condition = nn.Sequential(
                conv(coarser, hidden_channels, 3, padding=1),
                *residual_stack(conv, hidden_channels, residual_channels, num_residual_blocks),
                transposed(hidden_channels, embedding_dim, 4, 2, 1),
            )
            self.upsample = transposed(coarser, coarser, 4, 2, 1)
            conditioned += embedding_dim
        self.project = conv(conditioned, embedding_dim, 1)
        self.vq = make_layer(embedding_dim)

    def enter(self, state: Tensor | None, batch_size: int) -> Tensor | None:
        return state

    def vectors(self, features: Tensor, context: Tensor | None) -> Tensor:
        if context is not None:
            features = torch.cat([features, self.condition(context)], 1)
        vectors: Tensor = self.project(features)
        return vectors

    def join(self, quantized: Tensor, context: Tensor | None) -> Tensor:
        return quantized if context is None else torch.cat([quantized, self.upsample(context)], 1)

    def stand_in(self, context: Tensor) -> Tensor:
        return context.new_zeros(len(context), self.vq.embedding_dim, *(2 * s for s in context.shape[2:]))


def build_vqvae2(
    ndim: int,
    in_channels: int,
    make_layer: MakeLayer,
    *,
    num_levels: int,
    num_downsamplings: int,
    hidden_channels: int,
    residual_channels: int,
    num_residual_blocks: int,
    embedding_dim: int,
) -> tuple[nn.Module, list[Level], nn.Module]:
    """Encoder, levels from the coarsest, and decoder."""
    conv, transposed = convolutions(ndim)
    narrow = max(1, hidden_channels // 2)
    widths = [in_channels, *[narrow] * (num_downsamplings - 1), hidden_channels]

    stack = partial(residual_stack, conv, hidden_channels, residual_channels, num_residual_blocks)
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, after in pairwise(widths):
        down += [conv(before, after, 4, 2, 1), nn.ReLU()]
        up = [nn.ReLU(), transposed(after, before, 4, 2, 1), *up]

    def stage(first: list[nn.Module]) -> nn.Module:
        last = conv(hidden_channels, hidden_channels, 3, padding=1)
        return nn.Sequential(*first, last, *stack())

    coarser = ([conv(hidden_channels, hidden_channels, 4, 2, 1), nn.ReLU()] for _ in range(num_levels - 1))
    encoder = LevelsEncoder([stage(down), *map(stage, coarser)])
    levels: list[Level] = [
        _Level(
            ndim,
            number,
            make_layer,
            hidden_channels=hidden_channels,
            residual_channels=residual_channels,
            num_residual_blocks=num_residual_blocks,
            embedding_dim=embedding_dim,
        )
        for number in range(num_levels)
    ]
    decoder = nn.Sequential(
        conv(num_levels * embedding_dim, hidden_channels, 3, padding=1), *stack(), *up[1:]
    )
    return encoder, levels, decoder
