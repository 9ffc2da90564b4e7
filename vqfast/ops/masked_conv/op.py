"""``vqfast::masked_conv2d``: a convolution that sees the first ``taps`` kernel positions in raster order.

``x (B, C_in, H, W)``, ``weight (C_out, C_in, kh, kw)``, ``bias (C_out,)`` or none -> ``(B, C_out, H, W)``.
Kernel position ``anchor`` (row, column; it may lie outside the kernel) falls on the output's own position,
so ``(k, k)`` kernels with ``taps = k * k // 2`` and one more are masks A and B, and the stacks of the gated
PixelCNN are kernels of which every tap is visible. Outside the grid ``x`` is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.autograd import differentiate_through
from vqfast.ops.masked_conv import reference


@torch.library.custom_op("vqfast::masked_conv2d", mutates_args=())
def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """See the module."""
    run = registry.backend("masked_conv", x).masked_conv2d
    return run(x, weight, bias, taps, anchor, dilation)


@masked_conv2d.register_fake
def _(x, weight, bias, taps, anchor, dilation):
    return reference.masked_conv2d(x, weight, bias, taps, anchor, dilation)


@torch.library.custom_op("vqfast::masked_conv2d_backward", mutates_args=())
def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` and the bias."""
    run = registry.backend("masked_conv", x).masked_conv2d_backward
    return run(grad, x, weight, taps, anchor, dilation)


@masked_conv2d_backward.register_fake
def _(grad, x, weight, taps, anchor, dilation):
    return reference.masked_conv2d_backward(grad, x, weight, taps, anchor, dilation)


def _setup_context(ctx, inputs, output):
    x, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    grad_x, grad_weight, grad_bias = masked_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


masked_conv2d.register_autograd(_backward, setup_context=_setup_context)
differentiate_through(masked_conv2d_backward, reference.masked_conv2d_backward)
