"""``vqfast::masked_conv2d``: a convolution with the first ``taps`` kernel positions in raster order.

``out = activation(sums) + residual``, where ``sums = conv(x, weight) + bias + extra``:

- ``x (B, C_in, H, W)``, zero outside the grid; ``weight (C_out, C_in, kh, kw)``;
- optional ``bias (C_out,)``, ``extra (B, C_out, 1, 1)`` or ``(B, C_out, H, W)``, ``residual`` like the
  output;
- ``activation``: ``"none"``, ``"relu"`` or ``"gate"``, which is ``tanh(a) * sigmoid(b)`` of the two halves of
  the channels, and so halves them;
- ``kept``, a second output: the sums where the activation's gradient needs them, else ``(0,)``.

``anchor`` is the kernel position (row, column) that falls on the output's own position; it may lie outside
the kernel. Masks A and B are ``(k, k)`` kernels with ``taps = k * k // 2`` and one more; the stacks of the
gated PixelCNN are kernels with every tap visible. Outputs are channels last where ``x`` is, else contiguous.

``vqfast::gate`` is the activation alone; ``vqfast::embed`` the convolution of one-hot vectors.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.autograd import differentiate_through
from vqfast.ops.define import define, register_autograd
from vqfast.ops.masked_conv import layout, reference
from vqfast.ops.masked_conv.probe import Part, part_of


@define
def gate(x: Tensor, extra: Tensor | None) -> Tensor:
    """The gate of ``x (B, 2 C, H, W)`` plus ``extra``: ``(B, C, H, W)``."""
    part = partial(part_of, "gate", x, (extra,))
    return registry.backend("masked_conv", x, x.shape[1] // 2, part=part).gate(x, extra)


@torch.library.register_fake(gate)
def _(x, extra):
    return layout.empty(x, x.shape[1] // 2)


@define
def gate_backward(grad: Tensor, x: Tensor, extra: Tensor | None) -> Tensor:
    """Gradient to ``x``."""
    part = partial(part_of, "gate_backward", x, (extra,))
    return registry.backend("masked_conv", x, x.shape[1] // 2, part=part).gate_backward(grad, x, extra)


@torch.library.register_fake(gate_backward)
def _(grad, x, extra):
    return layout.empty(x, x.shape[1])


def _setup_gate(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gate_backward(ctx, grad):
    x, extra = ctx.saved_tensors
    grad_x = gate_backward(grad, x, extra)
    return grad_x, None if extra is None else grad_x.sum_to_size(extra.shape)


register_autograd(gate, _gate_backward, _setup_gate, reference.gate)
differentiate_through(gate_backward, reference.gate_backward)


@define
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
    """See the module."""
    part = partial(
        part_of,
        "masked_conv2d",
        x,
        (bias, extra, residual),
        weight,
        (taps, *anchor, *dilation),
        activation,
    )
    run = registry.backend("masked_conv", x, x.shape[1], part=part).masked_conv2d
    return run(x, weight, bias, extra, residual, taps, anchor, dilation, activation)


@torch.library.register_fake(masked_conv2d)
def _(x, weight, bias, extra, residual, taps, anchor, dilation, activation):
    out = layout.empty(x, layout.out_channels(weight, activation))
    kept = layout.empty(x, len(weight)) if layout.keeps_sums(activation, residual) else x.new_empty(0)
    return out, kept


@define
def masked_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x``, ``weight`` and the bias; ``grad`` is the gradient to the sums."""
    part = partial(part_of, "masked_conv2d_backward", x, (), weight, (taps, *anchor, *dilation))
    run = registry.backend("masked_conv", x, x.shape[1], part=part).masked_conv2d_backward
    return run(grad, x, weight, taps, anchor, dilation)


@torch.library.register_fake(masked_conv2d_backward)
def _(grad, x, weight, taps, anchor, dilation):
    return layout.empty(x, x.shape[1]), weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _setup_context(ctx, inputs, output):
    x, weight, bias, extra, residual, *ctx.geometry, ctx.activation = inputs
    out, kept = output
    ctx.given = bias is not None, residual is not None
    ctx.extra = None if extra is None else extra.shape
    # the sums are a differentiable output, for second derivatives
    ctx.set_materialize_grads(False)
    known = kept if layout.keeps_sums(ctx.activation, residual) else out
    ctx.save_for_backward(x, weight, None if ctx.activation == "none" else known)


def _backward(ctx, grad, grad_kept):
    if grad is None and grad_kept is None:
        return (None,) * 9
    x, weight, known = ctx.saved_tensors
    if grad is None:
        grad_sums = grad_kept
    elif ctx.activation == "gate":
        grad_sums = gate_backward(grad, known, None)
    elif ctx.activation == "relu":
        grad_sums = torch.ops.aten.threshold_backward(grad, known, 0)
    else:
        grad_sums = grad
    if grad is not None and grad_kept is not None and ctx.activation != "none":
        grad_sums = grad_sums + grad_kept
    has_bias, has_residual = ctx.given
    grad_x, grad_weight, grad_bias = masked_conv2d_backward(grad_sums, x, weight, *ctx.geometry)
    grad_extra = None if ctx.extra is None else grad_sums.sum_to_size(ctx.extra)
    grads = grad_x, grad_weight, grad_bias if has_bias else None, grad_extra, grad if has_residual else None
    return *grads, None, None, None, None


register_autograd(masked_conv2d, _backward, _setup_context, reference.masked_conv2d)
differentiate_through(masked_conv2d_backward, reference.masked_conv2d_backward)


@define
def embed(
    indices: Tensor, weight: Tensor, bias: Tensor | None, taps: int, anchor: list[int], dilation: list[int]
) -> Tensor:
    """``masked_conv2d`` of the one-hot vectors of int64 ``indices (B, H, W)``; channels last."""
    run = registry.backend("masked_conv", weight, weight.shape[1], part=partial(Part, "embed")).embed
    return run(indices, weight, bias, taps, anchor, dilation)


@torch.library.register_fake(embed)
def _(indices, weight, bias, taps, anchor, dilation):
    return layout.embedded(indices, weight)


@define
def embed_backward(
    grad: Tensor, indices: Tensor, weight: Tensor, taps: int, anchor: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients to ``weight`` and the bias."""
    part = partial(Part, "embed_backward")
    run = registry.backend("masked_conv", weight, weight.shape[1], part=part).embed_backward
    return run(grad, indices, weight, taps, anchor, dilation)


@torch.library.register_fake(embed_backward)
def _(grad, indices, weight, taps, anchor, dilation):
    return weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _setup_embed(ctx, inputs, output):
    indices, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(indices, weight)


def _embed_backward(ctx, grad):
    grad_weight, grad_bias = embed_backward(grad, *ctx.saved_tensors, *ctx.geometry)
    return None, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


register_autograd(embed, _embed_backward, _setup_embed, reference.embed)
differentiate_through(embed_backward, reference.embed_backward)
