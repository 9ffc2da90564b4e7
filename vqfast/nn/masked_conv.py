"""Masked convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqfast import functional
from vqfast.checks import (
    Device,
    check_choice,
    check_device,
    check_flags,
    check_integer,
    check_placement,
    check_tensor,
)
from vqfast.functional.masked_conv import MASK_TYPES, STACKS, check_activation
from vqfast.nn.calls import typed_as
from vqfast.nn.describe import arguments_of, describe
from vqfast.nn.script import refuse_script
from vqfast.ops.onnx import embed


class MaskedConv2d(nn.Module):
    """A convolution that sees only what comes before each position in raster order.

    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (arXiv 1601.06759), section 3.4, for
    the masks; "Conditional Image Generation with PixelCNN Decoders" (arXiv 1606.05328), section 2, for the
    stacks.

    Args:
        in_channels, out_channels: of the input, and of the output before the activation.
        kernel_size: the odd width of the whole kernel.
        mask_type: ``"A"`` hides the output's own position, ``"B"`` shows it.
        stack: ``"full"`` has the weight of an ordinary convolution, ``(out_channels, in_channels, k, k)``, so
            that its checkpoints load. ``"vertical"`` sees the rows above, ``"horizontal"`` the own row; these
            are the two stacks of the gated PixelCNN.
        dilation: the distance between neighbouring kernel positions.
        bias: whether to add a learnable bias.
        activation: ``"none"``, ``"relu"``, or ``"gate"``, which multiplies the tanh of one half of the
            channels with the sigmoid of the other.
        device, dtype: of the parameters, as in ``torch.nn``.

    Attributes:
        weight: ``(out_channels, in_channels, *kernel)``, without the hidden rows and columns of the stacks.
        bias: ``(out_channels,)`` or ``None``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or no kernel position is visible.

    Example:
        >>> conv = vqfast.MaskedConv2d(3, 16, 5, activation="relu")
        >>> conv(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
        >>> conv
        MaskedConv2d(3, 16, 5, activation='relu')
    """

    ndim = 2
    __prepare_scriptable__ = refuse_script
    _conv: Callable[..., Tensor] = staticmethod(functional.masked_conv2d)

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
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for name, value in {**sizes, "dilation": dilation}.items():
            check_integer(name, value, maximum=2**31 - 1)  # kernels count in int32
        check_choice("mask_type", mask_type, MASK_TYPES)
        check_choice("stack", stack, STACKS if self.ndim == 2 else ("full", "horizontal"))
        check_flags(bias=bias)
        check_activation(activation, out_channels)
        check_placement(device, dtype)
        minimum = 3 if mask_type == "A" else 1  # mask A hides the only position of a kernel of one
        if kernel_size % 2 == 0 or kernel_size < minimum:
            raise ValueError(f"kernel_size is {kernel_size}; want an odd integer, {minimum} or more")
        kernel = functional.kernel_shape(kernel_size, mask_type, stack)[-self.ndim :]
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.mask_type, self.stack, self.dilation, self.activation = mask_type, stack, dilation, activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, *kernel, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias uniformly within ``1 / sqrt(fan in)``; only visible taps count."""
        bound = 1 / math.sqrt(max(1, self.taps) * self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def _kernel(self) -> tuple[int, int]:
        height, width = (1, *self.weight.shape[2:])[-2:]
        return height, width

    @property
    def taps(self) -> int:
        """The number of visible kernel positions."""
        return functional.visible_taps(self._kernel, self.mask_type, self.stack)[0]

    def offsets(self) -> list[tuple[int, int]]:
        """``(dy, dx)`` from the output's own position to each visible tap, in the order of the weight."""
        _, width = self._kernel
        taps, (y, x) = functional.visible_taps(self._kernel, self.mask_type, self.stack)
        return [((t // width - y) * self.dilation, (t % width - x) * self.dilation) for t in range(taps)]

    def matrix(self) -> Tensor:
        """The visible part of the weight, ``(taps, in_channels, out_channels)``."""
        return self.weight.flatten(2)[..., : self.taps].permute(2, 1, 0)

    def forward(self, x: Tensor, extra: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """The masked convolution of ``x (B, in_channels, H, W)``; see ``functional.masked_conv2d``.

        Args:
            x: floating point; ``(B, in_channels, T)`` for ``MaskedConv1d``.
            extra: added before the activation, ``(B, out_channels, H, W)`` or ``(B, out_channels, 1, 1)``.
            residual: added to the result, of its shape.

        Returns:
            ``(B, out_channels, H, W)``, or with the gate ``(B, out_channels / 2, H, W)``.

        Raises:
            TypeError: an argument isn't a floating-point tensor.
            ValueError: shapes, dtypes or devices don't fit.
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

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def embed(self, indices: Tensor) -> Tensor:
        """The convolution of one-hot vectors, before the activation, in the dtype of the weight.

        Args:
            indices: int64 ``(B, H, W)``, from 0 to ``in_channels - 1``; values aren't checked.

        Returns:
            ``(B, out_channels, H, W)``, channels last.

        Raises:
            TypeError: ``indices`` isn't int64, or the bias hasn't the dtype of the weight.
            ValueError: the devices differ.

        Example:
            >>> conv = vqfast.MaskedConv2d(8, 4, 3)
            >>> conv.embed(torch.randint(8, (2, 5, 5))).shape
            torch.Size([2, 4, 5, 5])
        """
        check_tensor("indices", indices)
        if indices.dtype != torch.int64:
            raise TypeError(f"indices has dtype {indices.dtype}; want torch.int64")
        check_device("indices", indices, "weight", self.weight.device)
        if self.bias is not None and self.bias.dtype != self.weight.dtype:
            raise TypeError(f"bias has dtype {self.bias.dtype}; want the weight's, {self.weight.dtype}")
        taps, anchor = functional.visible_taps(self._kernel, self.mask_type, self.stack)
        weight = self.weight.view(*self.weight.shape[:2], *self._kernel)
        dilation = [self.dilation, self.dilation]
        return embed(indices, weight, self.bias, taps, list(anchor), dilation)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return describe(MaskedConv2d, arguments_of(MaskedConv2d, self, bias=self.bias is not None))


class MaskedConv1d(MaskedConv2d):
    """``MaskedConv2d`` over sequences ``(B, in_channels, T)``: it sees only what comes before each step.

    Arguments are those of ``MaskedConv2d``, but ``stack`` can't be ``"vertical"``. The weight is
    ``(out_channels, in_channels, k)``.

    Example:
        >>> vqfast.MaskedConv1d(3, 16, 5, mask_type="B")(torch.randn(2, 3, 20)).shape
        torch.Size([2, 16, 20])
    """

    ndim = 1
    _conv: Callable[..., Tensor] = staticmethod(functional.masked_conv1d)
