"""PixelCNN priors of 2-D codes."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

from vqfast.functional import gate
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.ops import dims
from vqfast.priors.base import CausalPrior, Conditioning, pointwise
from vqfast.sampling.program import CODES, Program, ProgramBuilder, Term


class GatedLayer(nn.Module):
    """A gated layer: rows above and the own row in two stacks, no blind spot.

    van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", figure 2.
    """

    def __init__(self, channels: int, kernel_size: int, mask_type: str, conditioning: Conditioning) -> None:
        super().__init__()
        self.vertical = MaskedConv2d(
            channels, 2 * channels, kernel_size, mask_type=mask_type, stack="vertical"
        )
        self.vertical_to_horizontal = pointwise(2 * channels, 2 * channels)
        self.horizontal = MaskedConv2d(
            channels, 2 * channels, kernel_size, mask_type=mask_type, stack="horizontal", activation="gate"
        )
        self.output = pointwise(channels, channels)
        self.conditioning = conditioning
        self.residual = mask_type == "B"  # with mask A the input holds the code that is to be predicted

    def forward(
        self, v: Tensor, h: Tensor, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The stacks' values, ``(B, channels, H, W)`` each."""
        bias = self.conditioning(labels, condition)
        above = self.vertical(v)
        across = self.horizontal(h, extra=self.vertical_to_horizontal(above, extra=bias))
        return gate(above, bias), self.output(across, residual=h if self.residual else None)

    def lower(self, builder: ProgramBuilder, v: int, h: int) -> tuple[int, int]:
        """The same as steps; the vertical one comes last."""
        width = len(self.vertical.weight)
        terms, table = self.conditioning.lower(builder)
        horizontal: Any = self.horizontal.bias
        above = builder.add(builder.conv(v, self.vertical), width=width, bias=self.vertical.bias)
        across = builder.add(
            builder.conv(h, self.horizontal),
            builder.dense(above, self.vertical_to_horizontal.weight),
            *terms,
            width=width,
            bias=horizontal + self.vertical_to_horizontal.bias,
            label_bias=table,
            activation="gate",
        )
        out = builder.pointwise(across, self.output, residual=h if self.residual else None)
        down = builder.add(Term(above), *terms, width=width, label_bias=table, activation="gate")
        return down, out


class PixelCNN(CausalPrior):
    """The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328) over codes.

    A first layer of mask A, ``first_kernel_size`` wide, then mask B; labels and map are biases before every
    gate; the head is 1x1, ReLU, 1x1.

    Args:
        num_embeddings: K.
        channels: of both stacks.
        num_layers: gated layers, the first one included.
        num_classes, condition_channels: see ``CausalPrior``.
        kernel_size, first_kernel_size: odd, 3 or more.
        head_channels: between the two 1x1 convolutions.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        channels: int = 64,
        num_layers: int = 15,
        num_classes: int | None = None,
        condition_channels: int = 0,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int = 512,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        self._require(channels=channels, num_layers=num_layers, head_channels=head_channels)
        self._require(kernel_size=kernel_size, first_kernel_size=first_kernel_size)
        if kernel_size < 3:  # a 1x1 layer would be no layer of stacks
            raise ValueError(f"kernel_size is {kernel_size}; want an odd number, 3 or more")
        self.embedding = nn.Embedding(num_embeddings, channels)
        self.layers = nn.ModuleList(
            GatedLayer(channels, k, mask, Conditioning(2 * channels, num_classes, condition_channels))
            for k, mask in chain([(first_kernel_size, "A")], repeat((kernel_size, "B"), num_layers - 1))
        )
        self.head = nn.Sequential(
            pointwise(channels, head_channels, "relu"),
            nn.Identity(),  # where others have the ReLU, so that their names are ours
            pointwise(head_channels, num_embeddings),
        )
        self._config = {
            "channels": channels,
            "num_layers": num_layers,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
        }

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return super().config | self._config

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        v = h = dims.move(self.embedding(codes), -1, 1)
        for layer in self.layers:
            v, h = layer(v, h, labels, condition)
        return self.head(h)

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        width = self.embedding.embedding_dim
        v = h = builder.add(builder.dense(CODES, self.embedding.weight.T), width=width)
        layers: Any = self.layers
        for layer in layers:
            v, h = layer.lower(builder, v, h)
        builder.steps.pop()  # nothing reads the last vertical value
        head: Any = self.head
        for conv, activation in ((head[0], "relu"), (head[2], "none")):
            h = builder.pointwise(h, conv, activation)
        return builder.program(self.num_embeddings)


class ResidualBlock(nn.Module):
    """1x1, mask-B 3x3 on half the channels, 1x1, ReLU after each, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.shrink = pointwise(channels, half, "relu")
        self.conv = MaskedConv2d(half, half, 3, mask_type="B", activation="relu")
        self.grow = pointwise(half, channels, "relu")

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` -> the same."""
        return self.grow(self.conv(self.shrink(x)), residual=x)


class ResidualPixelCNN(CausalPrior):
    """The residual PixelCNN of the Keras VQ-VAE example, over one-hot codes.

    A mask-A convolution ``first_kernel_size`` wide and ReLU, residual blocks, 1x1 mask-B convolutions with
    ReLU, 1x1.
    Labels and map (which the example lacks) are a bias of the first layer.

    Args:
        num_embeddings: K.
        channels: of every layer; the blocks' inner ones have half.
        num_residual_blocks, num_layers: how many blocks, and 1x1 mask-B convolutions after them.
        num_classes, condition_channels: see ``CausalPrior``.
        first_kernel_size: odd.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_embeddings: int = 128,
        channels: int = 128,
        num_residual_blocks: int = 2,
        num_layers: int = 2,
        num_classes: int | None = None,
        condition_channels: int = 0,
        first_kernel_size: int = 7,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        self._require(channels=channels, num_residual_blocks=num_residual_blocks, num_layers=num_layers)
        self._require(first_kernel_size=first_kernel_size)
        self.first = MaskedConv2d(num_embeddings, channels, first_kernel_size)
        self.conditioning = Conditioning(channels, num_classes, condition_channels)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(num_residual_blocks))
        self.layers = nn.ModuleList(pointwise(channels, channels, "relu") for _ in range(num_layers))
        self.head = pointwise(channels, num_embeddings)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
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
        return self.head(x)

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        terms, table = self.conditioning.lower(builder)
        x = builder.add(
            builder.conv(CODES, self.first),
            *terms,
            width=len(self.first.weight),
            bias=self.first.bias,
            label_bias=table,
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
