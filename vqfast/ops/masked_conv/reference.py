"""Masked convolution: the definition (van den Oord et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _masked(weight: Tensor, taps: int) -> Tensor:
    """``weight`` with all but its first ``taps`` kernel positions, in raster order, set to zero."""
    visible = torch.arange(weight[0, 0].numel(), device=weight.device).view(weight.shape[2:]) < taps
    return torch.where(visible, weight, 0)  # not a product: a hidden NaN must not count


def _padded(x: Tensor, weight: Tensor, anchor: list[int], dilation: list[int]) -> Tensor:
    """``x`` with the zeros around it that put tap ``anchor`` at the output's own position."""
    (kh, kw), (ay, ax), (dy, dx) = weight.shape[2:], anchor, dilation
    # an anchor beyond the kernel leaves rows that no tap sees
    padded = F.pad(x, [ax * dx, max(0, kw - 1 - ax) * dx, ay * dy, max(0, kh - 1 - ay) * dy])
    return padded[:, :, : x.shape[2] + (kh - 1) * dy, : x.shape[3] + (kw - 1) * dx]


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """``conv2d(x, weight * mask)``, shifted so that kernel position ``anchor`` sees the output's own."""
    return F.conv2d(_padded(x, weight, anchor, dilation), _masked(weight, taps), bias, dilation=dilation)


def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` (zero at hidden taps) and the bias."""
    padded = _padded(x, weight, anchor, dilation)
    grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        padded,
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
    (height, width), (top, left) = x.shape[2:], (a * d for a, d in zip(anchor, dilation, strict=True))
    unseen = [max(0, left + width - padded.shape[3]), max(0, top + height - padded.shape[2])]
    grad_x = F.pad(grad_padded, [0, unseen[0], 0, unseen[1]])[:, :, top : top + height, left : left + width]
    return grad_x.contiguous(), _masked(grad_weight, taps), grad_bias
