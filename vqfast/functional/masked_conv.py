"""Causal convolutions in raster order, and the gate that follows them."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_floating, check_sizes
from vqfast.functional.autocast import autocast_dtype
from vqfast.ops.masked_conv import layout
from vqfast.ops.onnx import gate as _gate
from vqfast.ops.onnx import masked_conv2d as _masked_conv2d

MASK_TYPES, STACKS = ("A", "B"), ("full", "vertical", "horizontal")
OPTIONAL = ("bias", "extra", "residual")


def kernel_shape(kernel_size: int, mask_type: str, stack: str) -> tuple[int, int]:
    """``(kh, kw)`` of the weight of a masked convolution ``kernel_size`` wide; see ``masked_conv2d``."""
    before = kernel_size // 2 + (mask_type == "B")
    shapes = {
        "full": (kernel_size, kernel_size),
        "vertical": (before, kernel_size),
        "horizontal": (1, before),
    }
    return shapes[stack]


def visible_taps(kernel: tuple[int, int], mask_type: str, stack: str) -> tuple[int, tuple[int, int]]:
    """``(taps, anchor)``: how many kernel positions are visible, and which one is the output's own.

    The visible ones come first in raster order.
    """
    kh, kw = map(int, kernel) if isinstance(kernel[0], Tensor) else kernel  # as a trace has them
    b = mask_type == "B"
    if stack == "vertical":
        return kh * kw, (kh - b, kw // 2)
    if stack == "horizontal":
        return kh * kw, (0, kw - b)
    return kh // 2 * kw + kw // 2 + b, (kh // 2, kw // 2)


def check_activation(activation: str, channels: int) -> None:
    """Raises ValueError unless ``channels`` channels can go through ``activation``."""
    check_choice("activation", activation, layout.ACTIVATIONS)
    if activation == "gate" and channels % 2:
        raise ValueError(f"the gate halves the channels, of which there are {channels}; want an even number")


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype, if it is on; float64 stays, as in ``conv2d``.

    Raises:
        ValueError: their dtypes differ after all.
    """
    tensors = (x, *others)
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != torch.float64:
        return tuple(None if t is None else t.to(dtype) for t in tensors)
    if len(dtypes := {t.dtype for t in tensors if t is not None}) > 1:
        raise ValueError(f"the arguments have dtypes {sorted(map(str, dtypes))}; want one")
    return tensors


def _check_added(name: str, tensor: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if tuple(tensor.shape) not in shapes:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; want {' or '.join(map(str, dict.fromkeys(shapes)))}"
        )


def gate(x: Tensor, extra: Tensor | None = None) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the channels' halves (van den Oord et al. 2016, equation 2), in one pass.

    Args:
        x: ``(B, 2 C, H, W)``, floating point.
        extra: added before: ``(B, 2 C, 1, 1)`` or ``(B, 2 C, H, W)``.

    Returns:
        ``(B, C, H, W)``, channels last where ``x`` is.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: the shapes don't fit.
    """
    check_floating(OPTIONAL, x=x, extra=extra)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; want (B, 2 C, H, W)")
    check_activation("gate", x.shape[1])
    if extra is not None:
        _check_added("extra", extra, [(*x.shape[:2], 1, 1), tuple(x.shape)])
    return _gate(*_autocast(x, extra))


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Causal convolution in raster order (van den Oord et al. 2016, "Conditional Image Generation").

    ``activation(conv(x) + bias + extra) + residual``, in one pass.

    Args:
        x: ``(B, C_in, H, W)``, floating point.
        weight: ``(C_out, C_in, kh, kw)``. With ``stack="full"`` an ordinary odd kernel, of which only the
            positions before the centre (``mask_type="A"``) or up to it (``"B"``) count, whatever the others
            hold. ``"vertical"``: rows above, ``(k // 2, k)``, and with ``"B"`` the own row too,
            ``(k // 2 + 1, k)``. ``"horizontal"``: the own row, ``(1, k // 2)`` to the left, and with ``"B"``
            the own position, ``(1, k // 2 + 1)``.
        bias: ``(C_out,)``.
        dilation: distance between kernel positions.
        activation: ``"none"``, ``"relu"``, or ``"gate"``: ``tanh(a) * sigmoid(b)`` of the channels' halves.
        extra: a bias of each sample, ``(B, C_out, 1, 1)``, or of each position, ``(B, C_out, H, W)``.
        residual: added last; the output's shape.

    Returns:
        ``(B, C_out, H, W)``, after the gate ``(B, C_out / 2, H, W)``; channels last where ``x`` is. ``x``
        counts as zero outside. No output reads what comes later. On a CPU and below float64, rows of which
        the kernel sees both sides are computed four neighbours at a time: there rounding (about 1e-7 of the
        row's numbers) lets outputs and gradients see up to three columns beyond the kernel.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: shapes or dtypes don't fit, or ``mask_type``, ``stack`` or ``activation`` is unknown.
    """
    check_floating(OPTIONAL, x=x, weight=weight, bias=bias, extra=extra, residual=residual)
    check_choice("mask_type", mask_type, MASK_TYPES)
    check_choice("stack", stack, STACKS)
    check_sizes(dilation=dilation)
    shape, kernel = x.shape, weight.shape
    if len(shape) != 4 or len(kernel) != 4 or shape[1] != kernel[1] or 0 in shape[1:] or kernel[0] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "want (B, C_in, H, W) and (C_out, C_in, kh, kw)"
        )
    channels, _, kh, kw = map(int, kernel)  # tensors while a model is traced
    odd = kh == 1 if stack == "horizontal" else kw % 2 == 1 and (stack == "vertical" or kh % 2 == 1)
    if not odd or kh < 1 or kw < 1:
        raise ValueError(f"weight has a {kh}x{kw} kernel, which is no {stack} kernel of odd size")
    check_activation(activation, channels)
    batch, _, *grid = shape
    if bias is not None:
        _check_added("bias", bias, [(channels,)])
    if extra is not None:
        _check_added("extra", extra, [(batch, channels, 1, 1), (batch, channels, *grid)])
    if residual is not None:
        _check_added("residual", residual, [(batch, layout.out_channels(weight, activation), *grid)])
    taps, anchor = visible_taps((kh, kw), mask_type, stack)
    tensors = _autocast(x, weight, bias, extra, residual)
    return _masked_conv2d(*tensors, taps, anchor, (dilation, dilation), activation)[0]


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``masked_conv2d`` of one row: ``x (B, C_in, T)``, ``weight (C_out, C_in, k)`` -> ``(B, C_out, T)``.

    ``extra`` is ``(B, C_out, 1)`` or ``(B, C_out, T)``, ``residual`` has the output's shape.

    Raises:
        TypeError, ValueError: as ``masked_conv2d``.
    """
    check_floating(OPTIONAL, x=x, weight=weight, bias=bias, extra=extra, residual=residual)
    if stack == "vertical":
        raise ValueError("stack is 'vertical'; one dimension has no rows above")
    if x.ndim != 3 or weight.ndim != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "want (B, C_in, T) and (C_out, C_in, k)"
        )
    for name, tensor in (("extra", extra), ("residual", residual)):
        if tensor is not None and tensor.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want three dimensions")
    extra, residual = (None if t is None else t.unsqueeze(2) for t in (extra, residual))
    x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    return masked_conv2d(x, weight, bias, mask_type, stack, dilation, activation, extra, residual).squeeze(2)
