"""A WaveNet-like prior of sequences of codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_sizes
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.ops import dims
from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import Conditioning, placement, pointwise
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, Program
from vqfast.saving.models import loadable


def spread(condition: Tensor, stride: int, length: int) -> Tensor:
    """``(..., ceil(length / stride))`` to ``(..., length)``: each entry stands for ``stride`` positions."""
    return condition if stride == 1 else condition.repeat_interleave(stride, -1)[..., :length]


class DilatedLayer(nn.Module):
    """A gated causal convolution of two taps, with residual and skip outputs.

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", figure 4.
    """

    def __init__(
        self, channels: int, dilation: int, conditioning: Conditioning, condition_stride: int, **factory: Any
    ) -> None:
        super().__init__()
        self.condition_stride = condition_stride
        self.conv = MaskedConv2d(
            channels,
            2 * channels,
            3,
            mask_type="B",
            stack="horizontal",
            dilation=dilation,
            activation="gate",
            **factory,
        )
        self.conditioning = conditioning
        self.output = pointwise(channels, channels, **factory)
        self.skip = pointwise(channels, channels, **factory)

    def forward(
        self, x: Tensor, total: Tensor | None, labels: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the total of the skip outputs so far, ``(B, channels, 1, T)`` each."""
        extra = self.conditioning(labels, condition)
        if condition is not None:
            extra = spread(extra, self.condition_stride, x.shape[-1])
        z = self.conv(x, extra=extra)
        return self.output(z, residual=x), self.skip(z, residual=total)


@loadable
class WaveNet(CausalPrior):
    """Dilated causal convolutions over sequences of codes.

    Codes are ``(B, T)``. The layers' dilations are 1, 2, 4 and so on, and start again at 1 after
    ``dilation_cycle`` layers.

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", arXiv 1609.03499,
    equations 2 and 3.

    Args:
        num_embeddings: K, the number of codes.
        channels: of the residual stream, the gates and the skip outputs.
        num_layers: number of dilated layers.
        dilation_cycle: number of layers after which the dilation is 1 again.
        num_classes: number of class labels that condition the prior; ``None`` for none.
        condition_channels: channels of a map ``(B, condition_channels, ceil(T / condition_stride))`` that
            conditions the prior; 0 for none.
        condition_stride: how many positions each entry of the map stands for.
        num_mixtures: of logistic distributions that a code is drawn from, for codes that stand for even steps
            from -1 to 1 (van den Oord et al. 2017, "Parallel WaveNet", section 2.1); ``None`` for logits.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    >>> prior = WaveNet(256, channels=16, num_layers=6, dilation_cycle=3)
    >>> prior(torch.zeros(2, 100, dtype=torch.int64)).shape
    torch.Size([2, 256, 100])
    >>> prior.sample(4, (100,)).shape
    torch.Size([4, 100])
    """

    ndim = 1

    def __init__(
        self,
        num_embeddings: int = 256,
        channels: int = 64,
        num_layers: int = 30,
        *,
        dilation_cycle: int = 10,
        num_classes: int | None = None,
        condition_channels: int = 0,
        condition_stride: int = 1,
        num_mixtures: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels)
        check_sizes(channels=channels, num_layers=num_layers, dilation_cycle=dilation_cycle)
        check_sizes(condition_stride=condition_stride)
        check_integer("num_mixtures", num_mixtures, optional=True)
        factory = placement(device, dtype)
        self.dilation_cycle, self.condition_stride = dilation_cycle, condition_stride
        self.num_mixtures = num_mixtures
        self.embedding = nn.Embedding(num_embeddings, channels, **factory)
        self.first = MaskedConv2d(channels, channels, 3, stack="horizontal", **factory)
        self.layers = nn.ModuleList(
            DilatedLayer(
                channels,
                2 ** (number % dilation_cycle),
                Conditioning(2 * channels, num_classes, condition_channels, **factory),
                condition_stride,
                **factory,
            )
            for number in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            pointwise(channels, channels, "relu", **factory),
            nn.Identity(),  # placeholder where other heads have a ReLU, so that state_dict keys match
            pointwise(channels, 3 * num_mixtures if num_mixtures else num_embeddings, **factory),
        )
        if num_mixtures:
            self._spread_components(num_mixtures)

    @property
    def config(self) -> dict[str, object]:
        """See ``CausalPrior``."""
        return super().config | {
            "channels": self.embedding.embedding_dim,
            "num_layers": len(self.layers),
            "dilation_cycle": self.dilation_cycle,
            "condition_stride": self.condition_stride,
            "num_mixtures": self.num_mixtures,
        }

    @property
    def reach(self) -> int:
        """How many earlier codes a code's logits depend on.

        >>> WaveNet(256, channels=4, num_layers=4, dilation_cycle=3).reach
        9
        """
        layers: Any = self.layers
        return 1 + sum(int(layer.conv.dilation) for layer in layers)

    @torch.no_grad()
    def _spread_components(self, num_mixtures: int) -> None:
        """At first the components of the mixture stand side by side, as wide as they are far apart."""
        last: Any = self.head[3]
        _, means, log_scales = last.bias.view(3, num_mixtures)
        means.copy_(torch.linspace(-1, 1, num_mixtures + 2)[1:-1])
        log_scales.fill_(-math.log(num_mixtures + 1))

    def condition_shape(self, num: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """See ``CausalPrior``."""
        return super().condition_shape(num, (-(-shape[-1] // self.condition_stride),))

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """See ``CausalPrior``; its last size is that of the map."""
        return super().on_grid(condition, (1, condition.shape[-1]))

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        x = self.first(dims.move(self.embedding(codes), -1, 1))
        total = None
        for layer in self.layers:
            x, total = layer(x, total, labels, condition)
        logits: Tensor = self.head(total)
        return logits

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        channels = self.embedding.embedding_dim
        x = builder.add(builder.dense(CODES, self.embedding.weight.T), width=channels)
        x = builder.add(builder.conv(x, self.first), width=channels, bias=self.first.bias)
        skips = []
        layers: Any = self.layers
        for layer in layers:
            terms, label_bias = layer.conditioning.lower(builder)
            z = builder.add(
                builder.conv(x, layer.conv),
                *terms,
                width=2 * channels,
                bias=layer.conv.bias,
                label_bias=label_bias,
                activation="gate",
            )
            skips.append(builder.dense(z, layer.skip.weight))
            x = builder.pointwise(z, layer.output, residual=x)
        builder.steps.pop()  # no layer reads the last residual value
        bias: Any = sum(layer.skip.bias for layer in layers)
        total = builder.add(*skips, width=channels, bias=bias, activation="relu")
        head: Any = self.head
        total = builder.pointwise(total, head[1], "relu")
        builder.pointwise(total, head[3])
        stride = self.condition_stride if self.condition_channels else 1
        return builder.program(
            self.num_embeddings, num_mixtures=self.num_mixtures or 0, condition_stride=stride
        )
