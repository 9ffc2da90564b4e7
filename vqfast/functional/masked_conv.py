"""Causal convolutions in raster order, and the gate that follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_floating, check_sizes
from vqfast.functional.autocast import autocast_dtype
from vqfast.ops.masked_conv import layout
from vqfast.ops.masked_conv.native import is_plain
from vqfast.ops.onnx import gate as _gate
from vqfast.ops.onnx import masked_conv2d as _masked_conv2d

MASK_TYPES, STACKS = ("A", "B"), ("full", "vertical", "horizontal")
OPTIONAL = ("bias", "extra", "residual")


def kernel_shape(kernel_size: int, mask_type: str, stack: str) -> tuple[int, int]:
    """``(kh, kw)`` of the weight of a masked convolution ``kernel_size`` wide; see ``masked_conv2d``.

    Example:
        >>> vqfast.functional.kernel_shape(3, "B", "vertical")
        (2, 3)
    """
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

    Example:
        >>> vqfast.functional.visible_taps((3, 3), "B", "full")
        (5, (1, 1))
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
        raise ValueError(f"activation is 'gate' of {channels} channels; want an even number to halve")


def _autocast(x: Tensor, *others: Tensor | None) -> Any:
    """``x`` and the others, in autocast's dtype if it is on; float64 stays, as in ``conv2d``.

    Raises:
        ValueError: their dtypes differ after all.
    """
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != torch.float64:
        return [None if t is None else t.to(dtype) for t in (x, *others)]
    if len(dtypes := {t.dtype for t in (x, *others) if t is not None}) > 1:
        raise ValueError(f"the tensors have dtypes {sorted(map(str, dtypes))}; want one dtype")
    return x, *others


def _check_added(name: str, tensor: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if tuple(tensor.shape) not in shapes:
        choices = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want {choices}")


def gate(x: Tensor, *, extra: Tensor | None = None) -> Tensor:
    """Multiplies ``tanh`` of the first half of the channels by ``sigmoid`` of the second, in one pass.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (arXiv
    1606.05328), equation 2.

    Args:
        x: ``(B, 2 C, H, W)``, floating point.
        extra: added to ``x`` before: ``(B, 2 C, 1, 1)`` or ``(B, 2 C, H, W)``.

    Returns:
        ``(B, C, H, W)``, channels last where ``x`` is.

    Raises:
        TypeError: an argument isn't a floating-point tensor.
        ValueError: shapes or dtypes don't fit, or tensors are on different devices.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> vqfast.functional.gate(x)  # tanh(1) * sigmoid(0)
        tensor([[[[0.3808]]]])
    """
    check_floating(OPTIONAL, x=x, extra=extra)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; want (B, 2 C, H, W)")
    check_activation("gate", x.shape[1])
    if extra is not None:
        _check_added("extra", extra, [(*x.shape[:2], 1, 1), tuple(x.shape)])
    x, extra = _autocast(x, extra)
    return _gate(x, extra)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves causally in raster order: ``activation(conv(x) + bias + extra) + residual``, in one pass.

    No output depends on a position that comes later in raster order. The grid is zero outside.
    On Intel's CPUs with tiles (AMX) float32 numbers are multiplied in three pieces of bfloat16: sums are as
    close as float32's, but numbers, pieces and sums below 1.2e-38 count as zero.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (arXiv
    1606.05328).

    Args:
        x: ``(B, C_in, H, W)``, floating point.
        weight: ``(C_out, C_in, kh, kw)``, see ``stack``.
        bias: ``(C_out,)``.
        mask_type: ``"A"`` sees the positions before the output's own, ``"B"`` its own too.
        stack: ``"full"`` takes an ordinary odd kernel and ignores the weights at hidden positions.
            ``"vertical"`` takes the rows above, ``(k // 2, k)``, and with ``"B"`` the own row too,
            ``(k // 2 + 1, k)``. ``"horizontal"`` takes the part of the own row to the left, ``(1, k // 2)``,
            and with ``"B"`` the own position too, ``(1, k // 2 + 1)``.
        dilation: the distance between kernel positions.
        activation: ``"none"``, ``"relu"``, or ``"gate"``, see ``gate``.
        extra: a bias of each sample, ``(B, C_out, 1, 1)``, or of each position, ``(B, C_out, H, W)``.
        residual: added last; the output's shape.

    Returns:
        ``(B, C_out, H, W)``, after the gate ``(B, C_out / 2, H, W)``; channels last where ``x`` is. On a CPU
        and below float64, rows of which the kernel sees both sides are computed four neighbours at a time.
        There rounding (about 1e-7 of the row's numbers) lets outputs and gradients depend on up to three
        columns beyond the kernel.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes or dtypes don't fit, tensors are on different devices, or ``mask_type``, ``stack``
            or ``activation`` is unknown.

    Example:
        >>> x, weight = torch.arange(1.0, 10).view(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> vqfast.functional.masked_conv2d(x, weight)  # sums of the row above and the left neighbour
        tensor([[[[ 0.,  1.,  2.],
                  [ 3., 10., 10.],
                  [ 9., 22., 19.]]]])
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
        raise ValueError(f"weight has a {kh}x{kw} kernel; want a {stack} one of odd size")
    check_activation(activation, channels)
    batch, _, *grid = shape
    if bias is not None:
        _check_added("bias", bias, [(channels,)])
    if extra is not None:
        _check_added("extra", extra, [(batch, channels, 1, 1), (batch, channels, *grid)])
    if residual is not None:
        _check_added("residual", residual, [(batch, layout.out_channels(weight, activation), *grid)])
    taps, anchor = visible_taps((kh, kw), mask_type, stack)
    x, weight, bias, extra, residual = _autocast(x, weight, bias, extra, residual)
    alone = activation == "none" and extra is None and residual is None
    if alone and is_plain(x, weight, bias, taps, anchor):
        return torch.conv2d(x, weight, bias)
    geometry = taps, list(anchor), [dilation, dilation]
    return _masked_conv2d(x, weight, bias, extra, residual, *geometry, activation)[0]


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str = "A",
    stack: str = "full",
    dilation: int = 1,
    activation: str = "none",
    extra: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves a sequence causally: ``masked_conv2d`` of a grid with one row.

    Args:
        x: ``(B, C_in, T)``, floating point.
        weight: ``(C_out, C_in, k)``, see ``stack``.
        bias: ``(C_out,)``.
        mask_type: ``"A"`` sees the positions before the output's own, ``"B"`` its own too.
        stack: ``"full"`` takes an ordinary odd kernel and ignores the weights at hidden positions;
            ``"horizontal"`` takes the visible positions alone, ``k // 2`` of them, with ``"B"`` one more.
        dilation: the distance between kernel positions.
        activation: ``"none"``, ``"relu"``, or ``"gate"``, see ``gate``.
        extra: a bias of each sample, ``(B, C_out, 1)``, or of each position, ``(B, C_out, T)``.
        residual: added last; the output's shape.

    Returns:
        ``(B, C_out, T)``, after the gate ``(B, C_out / 2, T)``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as ``masked_conv2d``, or ``stack`` is ``"vertical"``.

    Example:
        >>> x, weight = torch.arange(1.0, 6).view(1, 1, 5), torch.ones(1, 1, 3)
        >>> vqfast.functional.masked_conv1d(x, weight, mask_type="B")  # each with its left neighbour
        tensor([[[1., 3., 5., 7., 9.]]])
    """
    check_floating(OPTIONAL, x=x, weight=weight, bias=bias, extra=extra, residual=residual)
    check_choice("stack", stack, [each for each in STACKS if each != "vertical"])
    if x.ndim != 3 or weight.ndim != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "want (B, C_in, T) and (C_out, C_in, k)"
        )
    for name, tensor in (("extra", extra), ("residual", residual)):
        if tensor is not None and tensor.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want three dimensions")
    extra, residual = (None if t is None else t.unsqueeze(2) for t in (extra, residual))
    return masked_conv2d(
        x.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        mask_type=mask_type,
        stack=stack,
        dilation=dilation,
        activation=activation,
        extra=extra,
        residual=residual,
    ).squeeze(2)
