"""Masked convolution: the definition (van den Oord et al. 2016)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.ops import dims
from vqfast.ops.masked_conv.layout import keeps_sums, memory_format


def _masked(weight: Tensor, taps: int) -> Tensor:
    """``weight`` with all but its first ``taps`` kernel positions, in raster order, set to zero."""
    kernel = list(map(int, weight.shape[2:]))
    visible = torch.arange(math.prod(kernel), device=weight.device).view(kernel) < taps
    return torch.where(visible, weight, 0)  # not a product: a hidden NaN would spread


def _padded(x: Tensor, weight: Tensor, anchor: list[int], dilation: list[int]) -> Tensor:
    """``x`` with the zeros around it that put tap ``anchor`` at the output's own position."""
    (kh, kw), (ay, ax), (dy, dx) = map(int, weight.shape[2:]), anchor, dilation
    # where the anchor lies outside the kernel, no tap sees the last rows or columns
    padded = F.pad(x, [ax * dx, max(0, kw - 1 - ax) * dx, ay * dy, max(0, kh - 1 - ay) * dy])
    return padded[:, :, : x.shape[2] + (kh - 1) * dy, : x.shape[3] + (kw - 1) * dx]


def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the channels' halves of ``x + extra``."""
    a, b = (x if extra is None else x + extra).chunk(2, dim=1)
    return (a.tanh() * b.sigmoid()).contiguous(memory_format=memory_format(x))


def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """Gradient to ``x``."""
    a, b = (x if extra is None else x + extra).chunk(2, dim=1)
    tanh, sigmoid = a.tanh(), b.sigmoid()
    grads = grad * (1 - tanh * tanh) * sigmoid, grad * tanh * sigmoid * (1 - sigmoid)
    return torch.cat(grads, dim=1).contiguous(memory_format=memory_format(x))


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extra: Tensor | None,
    residual: Tensor | None,
    taps: int,
    anchor: list[int],
    dilation: list[int],
    activation: str,
) -> tuple[Tensor, Tensor]:
    """``activation(conv2d(x, weight * mask) + extra) + residual``, and the sums if ``keeps_sums``, else (0,).

    The kernel is shifted so that its position ``anchor`` sees the output's own.
    """
    sums = F.conv2d(_padded(x, weight, anchor, dilation), _masked(weight, taps), bias, dilation=dilation)
    sums = sums if extra is None else sums + extra
    activated = gate(sums, None) if activation == "gate" else sums.relu() if activation == "relu" else sums
    out = activated if residual is None else activated + residual
    kept = sums if keeps_sums(activation, residual) else x.new_empty(0)
    layout = memory_format(x)
    if kept.ndim == 4:
        kept = kept.contiguous(memory_format=layout)
    return out.contiguous(memory_format=layout), kept


def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` (zero at hidden taps) and the bias; ``grad`` is that of the sums."""
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
    grad_x = grad_x.contiguous(memory_format=memory_format(x))
    return grad_x, _masked(grad_weight, taps).contiguous(), grad_bias


def _seen(indices: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]) -> list[Tensor]:
    """The indices that each tap sees, ``(B, H, W)``; outside the grid ``in_channels``, which is no index."""
    (height, width), kw = indices.shape[1:], weight.shape[3]
    padded = _padded(indices[:, None] - weight.shape[1], weight, anchor, dilation)[:, 0] + weight.shape[1]
    corners = [(t // kw * dilation[0], t % kw * dilation[1]) for t in range(taps)]
    return [padded[:, y : y + height, x : x + width] for y, x in corners]


def embed(
    indices: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """The convolution of one-hot vectors: each tap adds the row of its matrix that its index names."""
    outside = weight.new_zeros(1, len(weight))
    rows = [
        F.embedding(seen, torch.cat([matrix.T, outside]))
        for seen, matrix in zip(
            _seen(indices, weight, taps, anchor, dilation), weight.flatten(2).unbind(2), strict=False
        )
    ]
    sums = sum(rows, weight.new_zeros(1) if bias is None else bias).expand(*indices.shape, len(weight))
    return dims.move(sums.contiguous(), -1, 1)


def embed_backward(
    grad: Tensor, indices: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients to ``weight`` (zero at hidden taps) and the bias: each index sums where it was seen."""
    grad, channels = grad.movedim(1, -1).flatten(0, 2), weight.shape[1]
    grad_weight = [weight.new_zeros(weight.shape[:2])] * weight[0, 0].numel()
    for t, seen in enumerate(_seen(indices, weight, taps, anchor, dilation)):
        picked = F.one_hot(seen.flatten(), channels + 1)[:, :channels].to(grad.dtype)
        grad_weight[t] = grad.T @ picked
    return torch.stack(grad_weight, -1).view(weight.shape), grad.sum(0)
