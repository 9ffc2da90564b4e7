"""PixelSNAIL, the prior of 2-D grids of codes that attends to all earlier positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_number, check_sizes
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import Conditioning, Dropout, check_kernel_size, placement, pointwise
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CODES, CONDITION, Program, Term
from vqfast.saving.models import loadable

_AXES = 2  # channels of the map of coordinates


def coordinates(like: Tensor) -> Tensor:
    """``(B, 2, H, W)``: each position's row and column, between -1 and 1, for ``like (B, C, H, W)``."""
    batch, _, *grid = like.shape
    along = [(2 * torch.arange(n, device=like.device) + 1).to(like.dtype) / n - 1 for n in grid]
    return torch.stack(torch.meshgrid(*along, indexing="ij")).expand(batch, -1, -1, -1)


def attention_width(channels: int) -> int:
    """Channels of queries, keys and values."""
    return max(1, channels // 2)


class GatedResidual(nn.Module):
    """Adds to its input what two convolutions make of it, after a GLU; ELUs precede both.

    Source: Chen et al. 2018, "PixelSNAIL", arXiv 1712.09763, the residual block.

    Args:
        channels: of its input and its result.
        kernel_size: of both convolutions, odd; 1 sees the own position alone.
        more_channels: of a second input, which is added by a 1x1 convolution before the second ELU.
        conditioning: added before the GLU, ``2 * channels`` wide.
        dropout: the share of values before the second convolution that training sets to zero.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        more_channels: int,
        conditioning: Conditioning,
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, channels, kernel_size, mask_type="B", **factory)
        self.more = pointwise(more_channels, channels, **factory) if more_channels else None
        self.dropout = Dropout(dropout)
        self.second = MaskedConv2d(channels, 2 * channels, kernel_size, mask_type="B", **factory)
        self.conditioning = conditioning

    def forward(
        self, x: Tensor, labels: Tensor | None, condition: Tensor | None, more: Tensor | None = None
    ) -> Tensor:
        """``(B, channels, H, W)``, and ``more (B, more_channels, H, W)`` -> ``(B, channels, H, W)``."""
        added = None if self.more is None or more is None else self.more(more)
        inner = self.first(F.elu(x), extra=added)
        inner = self.second(self.dropout(F.elu(inner)), extra=self.conditioning(labels, condition))
        return x + F.glu(inner, dim=1)

    def lower(self, builder: ProgramBuilder, x: int, axes: int, more: int = 0) -> int:
        """The same as steps; the program's map has ``axes`` channels after those of the condition."""
        channels = self.first.out_channels
        activated = builder.add(Term(x), width=channels, activation="elu")
        first: list[Term] = [builder.conv(activated, self.first)]
        bias: Any = self.first.bias
        if self.more is not None:
            first.append(builder.dense(more, self.more.weight))
            bias = bias + self.more.bias
        inner = builder.add(*first, width=channels, bias=bias, activation="elu")
        terms, label_bias = self.conditioning.lower(builder, axes)
        return builder.add(
            builder.conv(inner, self.second),
            *terms,
            width=2 * channels,
            bias=self.second.bias,
            label_bias=label_bias,
            activation="glu",
            residual=x,
        )


class CausalAttention(nn.Module):
    """Attention of each position to itself and all earlier ones.

    Queries are of the block's result and the coordinates, keys and values also of the block's input. None of
    them depends on the code of its own position, so that a position may attend to itself.

    Source: Chen et al. 2018, "PixelSNAIL", arXiv 1712.09763, the attention block.
    """

    def __init__(self, channels: int, width: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = pointwise(channels + _AXES, width, **factory)
        self.key = pointwise(2 * channels + _AXES, width, **factory)
        self.value = pointwise(2 * channels + _AXES, width, **factory)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` twice, the block's input and its result -> ``(B, width, H, W)``."""
        place = coordinates(x)
        seen = torch.cat([before, x, place], dim=1)
        query, key, value = (
            conv(of).flatten(2).unflatten(1, (self.num_heads, -1)).mT
            for conv, of in ((self.query, torch.cat([x, place], dim=1)), (self.key, seen), (self.value, seen))
        )
        mean = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        flat: Tensor = mean.mT.flatten(1, 2)
        return flat.view(len(x), -1, *x.shape[2:])

    def lower(self, builder: ProgramBuilder, before: int, x: int, condition_channels: int) -> int:
        """The same as steps; the coordinates follow the condition in the program's map."""
        width, channels = self.query.out_channels, self.query.in_channels - _AXES
        steps = []
        for conv, sources in ((self.query, [x]), (self.key, [before, x]), (self.value, [before, x])):
            *weights, place = conv.weight.split([*[channels] * len(sources), _AXES], dim=1)
            terms = [builder.dense(source, weight) for source, weight in zip(sources, weights, strict=True)]
            terms.append(builder.dense(CONDITION, F.pad(place, (0, 0, 0, 0, condition_channels, 0))))
            steps.append(builder.add(*terms, width=width, bias=conv.bias))
        scale = (width // self.num_heads) ** -0.5
        return builder.attend(*steps, heads=self.num_heads, scale=scale, own=True)


class PixelSNAILBlock(nn.Module):
    """Gated residual layers, then an attention, whose result another such layer takes in."""

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_heads: int,
        kernel_size: int,
        make_conditioning: Callable[[], Conditioning],
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedResidual(channels, kernel_size, 0, make_conditioning(), dropout, **factory)
            for _ in range(num_layers)
        )
        width = attention_width(channels)
        self.attention = CausalAttention(channels, width, num_heads, **factory) if num_heads else None
        self.output = (
            GatedResidual(channels, 1, width, make_conditioning(), dropout, **factory) if num_heads else None
        )

    def forward(self, x: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """``(B, channels, H, W)`` -> the same."""
        before = x
        for layer in self.layers:
            x = layer(x, labels, condition)
        if self.attention is None or self.output is None:
            return x
        mixed: Tensor = self.output(x, labels, condition, F.elu(self.attention(before, x)))
        return mixed

    def lower(self, builder: ProgramBuilder, x: int, condition_channels: int) -> int:
        """The same as steps."""
        before, axes = x, _AXES * (self.attention is not None)
        layers: Any = self.layers
        for layer in layers:
            x = layer.lower(builder, x, axes)
        if self.attention is None or self.output is None:
            return x
        mean = self.attention.lower(builder, before, x, condition_channels)
        mean = builder.add(Term(mean), width=builder.steps[mean].channels, activation="elu")
        return self.output.lower(builder, x, axes, mean)


@loadable
class PixelSNAIL(CausalPrior):
    """Gated residual convolutions, and attention to all earlier positions: VQ-VAE-2's prior.

    A mask-A convolution, blocks of gated residual layers that each end in an attention, and the head: an ELU,
    a 1x1 convolution, a ReLU, and a 1x1 convolution. Labels and map are a bias before every GLU.

    Source: Chen et al. 2018, "PixelSNAIL: An Improved Autoregressive Generative Model", arXiv 1712.09763;
    Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv 1906.00446, whose prior
    of the bottom level has no attention.

    Args:
        num_embeddings: K, the number of codes.
        channels: of the layers; attentions have half as many.
        num_blocks: number of blocks.
        num_layers: gated residual layers of each block.
        num_heads: of each attention, a divisor of ``channels // 2``; 0 for blocks without attention.
        num_classes: number of class labels that condition the prior; ``None`` for none.
        condition_channels: channels of a map on the codes' grid that conditions the prior; 0 for none.
        kernel_size: of the gated residual layers, odd, 3 or more.
        first_kernel_size: of the first layer, odd, 3 or more.
        head_channels: between the two 1x1 convolutions of the head.
        dropout: the share of the values inside of each layer that training sets to zero.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or ``num_heads`` doesn't divide ``channels // 2``.

    >>> prior = PixelSNAIL(512, channels=16, num_blocks=2, num_layers=2, num_heads=4)
    >>> prior(torch.zeros(2, 8, 8, dtype=torch.int64)).shape
    torch.Size([2, 512, 8, 8])
    >>> prior.sample(4, (8, 8)).shape
    torch.Size([4, 8, 8])
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        channels: int = 128,
        num_blocks: int = 4,
        num_layers: int = 4,
        *,
        num_heads: int = 8,
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
        check_sizes(channels=channels, num_blocks=num_blocks, num_layers=num_layers)
        check_sizes(head_channels=head_channels)
        check_integer("num_heads", num_heads, 0)
        if num_heads and attention_width(channels) % num_heads:
            raise ValueError(f"num_heads is {num_heads}; want 0 or a divisor of {attention_width(channels)}")
        check_kernel_size("kernel_size", kernel_size)
        check_kernel_size("first_kernel_size", first_kernel_size)
        check_number("dropout", dropout, minimum=0, below=1)
        factory = placement(device, dtype)
        self.first = MaskedConv2d(num_embeddings, channels, first_kernel_size, **factory)
        make_conditioning = partial(Conditioning, 2 * channels, num_classes, condition_channels, **factory)
        self.blocks = nn.ModuleList(
            PixelSNAILBlock(
                channels, num_layers, num_heads, kernel_size, make_conditioning, dropout, **factory
            )
            for _ in range(num_blocks)
        )
        self.head = nn.Sequential(
            nn.ELU(),
            pointwise(channels, head_channels, "relu", **factory),
            Dropout(dropout),
            pointwise(head_channels, num_embeddings, **factory),
        )
        self._config = {
            "channels": channels,
            "num_blocks": num_blocks,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
            "dropout": dropout,
        }

    @property
    def config(self) -> dict[str, object]:
        """See ``CausalPrior``."""
        return super().config | self._config

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """See ``CausalPrior``: the condition, and the coordinates that attentions see."""
        if not self._config["num_heads"]:
            return condition
        place = coordinates(self.first.weight.new_empty(len(codes), 0, *codes.shape[1:]))
        return place if condition is None else torch.cat([condition, place], dim=1)

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``."""
        x = self.first.embed(codes)
        for block in self.blocks:
            x = block(x, labels, condition)
        logits: Tensor = self.head(x)
        return logits

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        builder = ProgramBuilder()
        x = builder.add(builder.conv(CODES, self.first), width=self.first.out_channels, bias=self.first.bias)
        blocks: Any = self.blocks
        head: Any = self.head
        for block in blocks:
            x = block.lower(builder, x, self.condition_channels)
        x = builder.add(Term(x), width=self.first.out_channels, activation="elu")
        x = builder.pointwise(x, head[1], "relu")
        builder.pointwise(x, head[3])
        return builder.program(self.num_embeddings)
