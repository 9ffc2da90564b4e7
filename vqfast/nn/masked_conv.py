"""Masked convolutions as modules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqfast import functional
from vqfast.checks import Device, check_choice, check_flags, check_integer, check_placement, check_tensor
from vqfast.functional.masked_conv import MASK_TYPES, STACKS, check_activation
from vqfast.nn.script import refuse_script
from vqfast.ops.onnx import embed


class MaskedConv2d(nn.Module):
    """A causal convolution in raster order over ``(B, in_channels, H, W)``; see ``functional.masked_conv2d``.

    Args:
        kernel_size: odd width of the whole kernel.
        mask_type: ``"A"`` hides the own position, ``"B"`` shows it.
        stack: ``"full"`` keeps the weight of an ordinary convolution, ``(out, in, k, k)``, so that its
            checkpoints load; ``"vertical"`` and ``"horizontal"`` are those of the gated PixelCNN.
        dilation: distance between kernel positions.
        activation: ``"none"``, ``"relu"`` or ``"gate"``, which halves ``out_channels``.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        ValueError: a size below 1, an even kernel, an unknown mask type, stack or activation.
    """

    ndim = 2
    __prepare_scriptable__ = refuse_script
    _conv = staticmethod(functional.masked_conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        mask_type: str = "A",
        stack: str = "full",
        dilation: int = 1,
        bias: bool = True,
        activation: str = "none",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        check_flags(bias=bias)
        check_choice("mask_type", mask_type, MASK_TYPES)
        check_choice("stack", stack, STACKS)
        if self.ndim == 1 and stack == "vertical":
            raise ValueError("stack is 'vertical'; one dimension has no rows above")
        check_integer("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; want an odd number")
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "dilation": dilation}
        for name, value in sizes.items():
            check_integer(name, value, maximum=2**31 - 1)
        check_activation(activation, out_channels)
        kernel = functional.kernel_shape(kernel_size, mask_type, stack)[-self.ndim :]
        if mask_type == "A" and kernel_size == 1:
            raise ValueError("kernel_size is 1, of which mask A leaves nothing; want 3 or more")
        self.mask_type, self.stack, self.dilation, self.activation = mask_type, stack, dilation, activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, *kernel, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within ``1 / sqrt(fan in)``, counting visible taps only."""
        bound = 1 / math.sqrt(max(1, self.taps) * self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def _kernel(self) -> tuple[int, int]:
        return (1, *self.weight.shape[2:])[-2:]

    @property
    def taps(self) -> int:
        """How many kernel positions are visible."""
        return functional.visible_taps(self._kernel, self.mask_type, self.stack)[0]

    def offsets(self) -> list[tuple[int, int]]:
        """``(dy, dx)`` of every visible tap from the output's own position, in the weight's order."""
        _, kw = self._kernel
        taps, (ay, ax) = functional.visible_taps(self._kernel, self.mask_type, self.stack)
        return [((t // kw - ay) * self.dilation, (t % kw - ax) * self.dilation) for t in range(taps)]

    def matrix(self) -> Tensor:
        """The visible part of the weight, ``(taps, in_channels, out_channels)``."""
        return self.weight.flatten(2)[..., : self.taps].permute(2, 1, 0)

    def forward(self, x: Tensor, extra: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``(B, in_channels, H, W)`` -> ``(B, out_channels, H, W)``, half the channels after the gate.

        For ``MaskedConv1d`` without the ``H``. ``extra`` and ``residual``: see ``functional.masked_conv2d``.
        """
        return self._conv(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            stack=self.stack,
            dilation=self.dilation,
            activation=self.activation,
            extra=extra,
            residual=residual,
        )

    if TYPE_CHECKING:
        __call__ = forward

    def embed(self, codes: Tensor) -> Tensor:
        """The convolution of one-hot vectors, before any activation, in the weight's dtype.

        Args:
            codes: int64 ``(B, H, W)``, in ``0..in_channels - 1``.

        Returns:
            ``(B, out_channels, H, W)``, channels last.

        Raises:
            TypeError: the codes aren't int64, or the bias hasn't the weight's dtype.
        """
        check_tensor("codes", codes)
        if codes.dtype != torch.int64:
            raise TypeError(f"codes have dtype {codes.dtype}; want torch.int64")
        if self.bias is not None and self.bias.dtype != self.weight.dtype:
            raise TypeError(f"bias has dtype {self.bias.dtype}; want the weight's, {self.weight.dtype}")
        taps, anchor = functional.visible_taps(self._kernel, self.mask_type, self.stack)
        weight = self.weight.view(*self.weight.shape[:2], *self._kernel)
        return embed(codes, weight, self.bias, taps, anchor, (self.dilation, self.dilation))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{tuple(self.weight.shape)}, mask_type={self.mask_type}, stack={self.stack}"


class MaskedConv1d(MaskedConv2d):
    """The same over ``(B, in_channels, T)``; weights are ``(out, in, k)``."""

    ndim = 1
    _conv = staticmethod(functional.masked_conv1d)
