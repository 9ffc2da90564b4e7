"""The gated PixelCNN prior of 2-D grids of codes."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_number, check_sizes
from vqfast.functional import gate
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.ops import dims
from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import Conditioning, Dropout, check_kernel_size, placement, pointwise
from vqfast.priors.several_codes import CodesEmbedding, CodesHead
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, Program, Term
from vqfast.saving.models import loadable


class GatedLayer(nn.Module):
    """A gated layer. One stack sees the rows above, another its own row, so there is no blind spot.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", figure 2.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        mask_type: str,
        conditioning: Conditioning,
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.vertical = MaskedConv2d(
            channels, 2 * channels, kernel_size, mask_type=mask_type, stack="vertical", **factory
        )
        self.vertical_to_horizontal = pointwise(2 * channels, 2 * channels, **factory)
        self.horizontal = MaskedConv2d(
            channels,
            2 * channels,
            kernel_size,
            mask_type=mask_type,
            stack="horizontal",
            activation="gate",
            **factory,
        )
        self.dropout = Dropout(dropout)
        self.output = pointwise(channels, channels, **factory)
        self.conditioning = conditioning
        self.residual = mask_type == "B"  # the input of a mask-A layer holds the code that is predicted

    def forward(
        self, v: Tensor, h: Tensor, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The values of the vertical and the horizontal stack, ``(B, channels, H, W)`` each."""
        bias = self.conditioning(labels, condition)
        above = self.vertical(v)
        across = self.dropout(self.horizontal(h, extra=self.vertical_to_horizontal(above, extra=bias)))
        down = self.dropout(gate(above, extra=bias))
        return down, self.output(across, residual=h if self.residual else None)

    def lower(self, builder: ProgramBuilder, v: int, h: int) -> tuple[int, int]:
        """The same as steps; the vertical stack's step is the last."""
        width = len(self.vertical.weight)
        terms, label_bias = self.conditioning.lower(builder)
        horizontal_bias: Any = self.horizontal.bias
        above = builder.add(builder.conv(v, self.vertical), width=width, bias=self.vertical.bias)
        across = builder.add(
            builder.conv(h, self.horizontal),
            builder.dense(above, self.vertical_to_horizontal.weight),
            *terms,
            width=width,
            bias=horizontal_bias + self.vertical_to_horizontal.bias,
            label_bias=label_bias,
            activation="gate",
        )
        out = builder.pointwise(across, self.output, residual=h if self.residual else None)
        down = builder.add(Term(above), *terms, width=width, label_bias=label_bias, activation="gate")
        return down, out


@loadable
class PixelCNN(CausalPrior):
    """The gated PixelCNN over 2-D grids of codes.

    The first layer has mask A, the others mask B. Labels and map are a bias before every gate. The head is a
    1x1 convolution, a ReLU, and a 1x1 convolution.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", arXiv 1606.05328,
    equations 2 and 4.

    Args:
        num_embeddings: K, the number of codes.
        channels: of both stacks.
        num_layers: gated layers, including the first.
        num_quantizers: codes of each position, as those of a ``ResidualVQLayer``: codes are then
            ``(B, H, W, num_quantizers)``, and each is predicted from all earlier ones, those of its own
            position too. ``None`` for codes ``(B, H, W)``.
        num_classes: number of class labels that condition the prior; ``None`` for none.
        condition_channels: channels of a map on the codes' grid that conditions the prior; 0 for none.
        kernel_size: of the layers after the first, odd, 3 or more.
        first_kernel_size: of the first layer, odd, 3 or more.
        head_channels: between the two 1x1 convolutions of the head.
        dropout: the share of the values after each gate and inside the head that training sets to zero.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    >>> prior = PixelCNN(512, channels=16, num_layers=3, num_classes=10)
    >>> logits = prior(torch.zeros(2, 8, 8, dtype=torch.int64), labels=3)
    >>> logits.shape
    torch.Size([2, 512, 8, 8])
    >>> prior.sample(4, (8, 8), labels=3).shape
    torch.Size([4, 8, 8])
    >>> prior = PixelCNN(512, channels=16, num_layers=3, num_quantizers=4)
    >>> prior.sample(2, (8, 8)).shape
    torch.Size([2, 8, 8, 4])
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        channels: int = 64,
        num_layers: int = 15,
        *,
        num_quantizers: int | None = None,
        num_classes: int | None = None,
        condition_channels: int = 0,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int = 512,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        check_integer("num_quantizers", num_quantizers, optional=True)
        check_sizes(channels=channels, num_layers=num_layers, head_channels=head_channels)
        check_kernel_size("kernel_size", kernel_size)
        check_kernel_size("first_kernel_size", first_kernel_size)
        check_number("dropout", dropout, minimum=0, below=1)
        factory = placement(device, dtype)
        self.num_quantizers = num_quantizers
        self.embedding = (
            nn.Embedding(num_embeddings, channels, **factory)
            if num_quantizers is None
            else CodesEmbedding(num_embeddings, channels, num_quantizers, **factory)
        )
        self.layers = nn.ModuleList(
            GatedLayer(
                channels,
                size,
                mask_type,
                Conditioning(2 * channels, num_classes, condition_channels, **factory),
                dropout,
                **factory,
            )
            for size, mask_type in chain(
                [(first_kernel_size, "A")], repeat((kernel_size, "B"), num_layers - 1)
            )
        )
        self.head = (
            nn.Sequential(
                pointwise(channels, head_channels, "relu", **factory),
                Dropout(dropout),  # where other heads have a ReLU, so that state_dict keys match
                pointwise(head_channels, num_embeddings, **factory),
            )
            if num_quantizers is None
            else CodesHead(num_embeddings, channels, head_channels, num_quantizers, dropout, **factory)
        )
        self._config = {
            "num_quantizers": num_quantizers,
            "channels": channels,
            "num_layers": num_layers,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
            "dropout": dropout,
        }

    @property
    def config(self) -> dict[str, object]:
        """See ``CausalPrior``."""
        return super().config | self._config

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        embedded: Tensor = self.embedding(codes)
        v = h = dims.move(embedded, -1, 1) if self.num_quantizers is None else embedded
        for layer in self.layers:
            v, h = layer(v, h, labels, condition)
        logits: Tensor = self.head(h) if self.num_quantizers is None else self.head(h, codes)
        return logits

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        embedding: Any = self.embedding
        head: Any = self.head
        if isinstance(embedding, CodesEmbedding):
            v = h = embedding.lower(builder)
        else:
            term = builder.dense(CODES, embedding.weight.T)
            v = h = builder.add(term, width=embedding.embedding_dim)
        layers: Any = self.layers
        for layer in layers:
            v, h = layer.lower(builder, v, h)
        builder.steps.pop()  # no layer reads the last vertical value
        if isinstance(head, CodesHead):
            head.lower(builder, h)
        else:
            for conv, activation in ((head[0], "relu"), (head[2], "none")):
                h = builder.pointwise(h, conv, activation)
        return builder.program(self.num_embeddings, self.num_quantizers or 1)
