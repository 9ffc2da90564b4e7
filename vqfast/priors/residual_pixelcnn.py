"""The residual PixelCNN prior of 2-D grids of codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_sizes
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import Conditioning, check_kernel_size, placement, pointwise
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, Program
from vqfast.saving.models import loadable


class ResidualBlock(nn.Module):
    """Adds to its input: a 1x1, a mask-B 3x3 on half the channels and a 1x1 convolution, each with a ReLU."""

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.shrink = pointwise(channels, half, "relu", **factory)
        self.conv = MaskedConv2d(half, half, 3, mask_type="B", activation="relu", **factory)
        self.grow = pointwise(half, channels, "relu", **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` -> the same."""
        grown: Tensor = self.grow(self.conv(self.shrink(x)), residual=x)
        return grown


@loadable
class ResidualPixelCNN(CausalPrior):
    """The residual PixelCNN of the Keras VQ-VAE example, over one-hot codes.

    A mask-A convolution with ReLU, residual blocks, 1x1 mask-B convolutions with ReLU, and a 1x1 convolution.
    Labels and map, which the example lacks, are a bias of the first layer.

    Source: Paul 2021, "Vector-Quantized Variational Autoencoders", keras.io/examples/generative/vq_vae; its
    blocks are those of van den Oord et al. 2016, "Pixel Recurrent Neural Networks", arXiv 1601.06759.

    Args:
        num_embeddings: K, the number of codes.
        channels: of every layer but those inside of the blocks, which have half as many.
        num_residual_blocks: number of residual blocks.
        num_layers: number of 1x1 mask-B convolutions after the blocks.
        num_classes: number of class labels that condition the prior; ``None`` for none.
        condition_channels: channels of a map on the codes' grid that conditions the prior; 0 for none.
        first_kernel_size: of the first layer, odd, 3 or more.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    >>> prior = ResidualPixelCNN(128, channels=16)
    >>> prior(torch.zeros(2, 7, 7, dtype=torch.int64)).shape
    torch.Size([2, 128, 7, 7])
    >>> prior.sample(4, (7, 7)).shape
    torch.Size([4, 7, 7])
    """

    def __init__(
        self,
        num_embeddings: int = 128,
        channels: int = 128,
        num_residual_blocks: int = 2,
        num_layers: int = 2,
        *,
        num_classes: int | None = None,
        condition_channels: int = 0,
        first_kernel_size: int = 7,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        check_sizes(channels=channels, num_residual_blocks=num_residual_blocks, num_layers=num_layers)
        check_kernel_size("first_kernel_size", first_kernel_size)
        factory = placement(device, dtype)
        self.first = MaskedConv2d(num_embeddings, channels, first_kernel_size, **factory)
        self.conditioning = Conditioning(channels, num_classes, condition_channels, **factory)
        self.blocks = nn.ModuleList(ResidualBlock(channels, **factory) for _ in range(num_residual_blocks))
        self.layers = nn.ModuleList(
            pointwise(channels, channels, "relu", **factory) for _ in range(num_layers)
        )
        self.head = pointwise(channels, num_embeddings, **factory)

    @property
    def config(self) -> dict[str, object]:
        """See ``CausalPrior``."""
        return super().config | {
            "channels": self.first.weight.shape[0],
            "num_residual_blocks": len(self.blocks),
            "num_layers": len(self.layers),
            "first_kernel_size": self.first.weight.shape[-1],
        }

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        x, bias = self.first.embed(codes), self.conditioning(labels, condition)
        x = (x if bias is None else x + bias).relu()
        for block in self.blocks:
            x = block(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        terms, label_bias = self.conditioning.lower(builder)
        x = builder.add(
            builder.conv(CODES, self.first),
            *terms,
            width=len(self.first.weight),
            bias=self.first.bias,
            label_bias=label_bias,
            activation="relu",
        )
        blocks: Any = self.blocks
        layers: Any = self.layers
        for block in blocks:
            inner = builder.pointwise(x, block.shrink, "relu")
            inner = builder.add(
                builder.conv(inner, block.conv),
                width=len(block.conv.weight),
                bias=block.conv.bias,
                activation="relu",
            )
            x = builder.pointwise(inner, block.grow, "relu", residual=x)
        for layer in layers:
            x = builder.pointwise(x, layer, "relu")
        builder.pointwise(x, self.head)
        return builder.program(self.num_embeddings)
