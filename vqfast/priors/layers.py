"""What the priors' layers share: the 1x1 convolution, dropout, and the bias that conditions a layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_placement
from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import CONDITION, Term


def pointwise(
    in_channels: int,
    out_channels: int,
    activation: str = "none",
    *,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> MaskedConv2d:
    """A 1x1 convolution, which sees its own position."""
    return MaskedConv2d(
        in_channels, out_channels, 1, mask_type="B", activation=activation, device=device, dtype=dtype
    )


def placement(device: Device, dtype: torch.dtype | None) -> dict[str, Any]:
    """``device`` and ``dtype``, checked, as keywords of ``torch.nn`` modules."""
    check_placement(device, dtype)
    return {"device": device, "dtype": dtype}


def check_kernel_size(name: str, value: int) -> None:
    """An odd kernel size that has other positions than its centre.

    Raises:
        TypeError: it isn't an integer.
        ValueError: it is even, or below 3.
    """
    check_integer(name, value)
    if value < 3 or value % 2 == 0:
        raise ValueError(f"{name} is {value}; want an odd integer, 3 or more")


class Dropout(nn.Dropout):
    """Dropout in training, but not in inference mode, in which samples are drawn: programs have none."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape, with a share of its values set to zero and the others scaled up."""
        sampling = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        return x if sampling else super().forward(x)


class Conditioning(nn.Module):
    """A bias that depends on the class label, on the conditioning map, or on both.

    Args:
        width: channels of the bias.
        num_classes: number of classes, or ``None``.
        condition_channels: channels of the map, 0 for none.
    """

    def __init__(
        self,
        width: int,
        num_classes: int | None,
        condition_channels: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes, width, device=device, dtype=dtype) if num_classes else None
        self.condition = (
            nn.Conv2d(condition_channels, width, 1, bias=False, device=device, dtype=dtype)
            if condition_channels
            else None
        )

    def forward(self, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """``(B,)`` and ``(B, C, H, W)`` -> ``(B, width, 1, 1)`` without a map, else ``(B, width, H, W)``."""
        biases = []
        if self.labels is not None:
            biases.append(self.labels(labels)[:, :, None, None])
        if self.condition is not None:
            biases.append(self.condition(condition))
        return sum(biases[1:], biases[0]) if biases else None

    def lower(self, builder: ProgramBuilder, others: int = 0) -> tuple[list[Term], Tensor | None]:
        """The same for a step: the map's terms, and the ``label_bias``.

        ``others`` counts the channels that the program's map has after those of the condition.
        """
        terms = []
        if self.condition is not None:
            terms.append(builder.dense(CONDITION, F.pad(self.condition.weight, (0, 0, 0, 0, 0, others))))
        return terms, None if self.labels is None else self.labels.weight
