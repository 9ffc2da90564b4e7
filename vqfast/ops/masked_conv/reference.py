"""Masked convolution: the definition (van den Oord et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _masked(weight: Tensor, taps: int) -> Tensor:
    """``weight`` with all but its first ``taps`` kernel positions, in raster order, set to zero."""
    visible = torch.arange(weight[0, 0].numel(), device=weight.device).view(weight.shape[2:]) < taps
    return torch.where(visible, weight, 0)  # not a product: a hidden NaN must not count


def _padding(weight: Tensor, anchor: list[int], dilation: list[int]) -> list[int]:
    """left, right, top, bottom: what puts tap ``anchor`` at the output's own position; may be negative."""
    kernel = weight.shape[2:]
    before = [a * d for a, d in zip(anchor, dilation, strict=True)]
    after = [(k - 1 - a) * d for k, a, d in zip(kernel, anchor, dilation, strict=True)]
    return [before[1], after[1], before[0], after[0]]


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """``conv2d(x, weight * mask)``, shifted so that kernel position ``anchor`` sees the output's own."""
    padded = F.pad(x, _padding(weight, anchor, dilation))
    return F.conv2d(padded, _masked(weight, taps), bias, dilation=dilation)


def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` (zero at hidden taps) and the bias."""
    padding = _padding(weight, anchor, dilation)
    grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        F.pad(x, padding),
        _masked(weight, taps),
        [len(weight)],
        [1, 1],
        [0, 0],
        dilation,
        False,
        [0, 0],
        1,
        [True, True, True],
    )
    return F.pad(grad_padded, [-p for p in padding]), _masked(grad_weight, taps), grad_bias
