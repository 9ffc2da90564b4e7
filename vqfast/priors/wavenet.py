"""A WaveNet-like prior of sequences of codes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.ops import dims
from vqfast.priors.base import CausalPrior, Conditioning, pointwise
from vqfast.sampling.program import CODES, Program, ProgramBuilder


class DilatedLayer(nn.Module):
    """A gated causal convolution of two taps, with residual and skip outputs."""

    def __init__(self, channels: int, dilation: int, conditioning: Conditioning) -> None:
        super().__init__()
        self.conv = MaskedConv2d(
            channels,
            2 * channels,
            3,
            mask_type="B",
            stack="horizontal",
            dilation=dilation,
            activation="gate",
        )
        self.conditioning = conditioning
        self.output = pointwise(channels, channels)
        self.skip = pointwise(channels, channels)

    def forward(
        self, x: Tensor, total: Tensor | None, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the skip outputs' total, ``(B, channels, 1, T)`` each."""
        z = self.conv(x, extra=self.conditioning(labels, condition))
        return self.output(z, residual=x), self.skip(z, residual=total)


class WaveNet(CausalPrior):
    """Dilated causal convolutions over sequences of codes (van den Oord et al. 2016, arXiv 1609.03499).

    Codes are ``(B, T)``. Dilations double from 1, ``dilation_cycle`` layers long, and start again.

    Args:
        num_embeddings: K.
        channels: of the residual stream, the gates and the skip outputs.
        num_layers: dilated layers.
        dilation_cycle: layers until the dilation is 1 again.
        num_classes, condition_channels: see ``CausalPrior``; the map is ``(B, condition_channels, T)``.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range.
    """

    ndim = 1

    def __init__(
        self,
        num_embeddings: int = 256,
        channels: int = 64,
        num_layers: int = 30,
        dilation_cycle: int = 10,
        num_classes: int | None = None,
        condition_channels: int = 0,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        self._require(channels=channels, num_layers=num_layers, dilation_cycle=dilation_cycle)
        self.dilation_cycle = dilation_cycle
        self.embedding = nn.Embedding(num_embeddings, channels)
        self.first = MaskedConv2d(channels, channels, 3, stack="horizontal")
        self.layers = nn.ModuleList(
            DilatedLayer(
                channels,
                2 ** (number % dilation_cycle),
                Conditioning(2 * channels, num_classes, condition_channels),
            )
            for number in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            pointwise(channels, channels, "relu"),
            nn.Identity(),  # where others have the ReLU, so that their names are ours
            pointwise(channels, num_embeddings),
        )

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return super().config | {
            "channels": self.embedding.embedding_dim,
            "num_layers": len(self.layers),
            "dilation_cycle": self.dilation_cycle,
        }

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        x = self.first(dims.move(self.embedding(codes), -1, 1))
        total = None
        for layer in self.layers:
            x, total = layer(x, total, labels, condition)
        return self.head(total)

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        channels = self.embedding.embedding_dim
        x = builder.add(builder.dense(CODES, self.embedding.weight.T), width=channels)
        x = builder.add(builder.conv(x, self.first), width=channels, bias=self.first.bias)
        skips = []
        layers: Any = self.layers
        for layer in layers:
            terms, table = layer.conditioning.lower(builder)
            z = builder.add(
                builder.conv(x, layer.conv),
                *terms,
                width=2 * channels,
                bias=layer.conv.bias,
                label_bias=table,
                activation="gate",
            )
            skips.append(builder.dense(z, layer.skip.weight))
            x = builder.pointwise(z, layer.output, residual=x)
        builder.steps.pop()  # nothing reads the last residual value
        bias: Any = sum(layer.skip.bias for layer in layers)
        total = builder.add(*skips, width=channels, bias=bias, activation="relu")
        head: Any = self.head
        total = builder.pointwise(total, head[1], "relu")
        builder.pointwise(total, head[3])
        return builder.program(self.num_embeddings)
