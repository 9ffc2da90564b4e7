"""Masked convolutions by their definition: an ordinary one with an explicitly padded kernel, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.functional import kernel_shape

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
}


def padded_kernel(weight: Tensor, size: int, stack: str, mask: str) -> Tensor:
    """The ordinary ``size x size`` kernel, in float64, with zeros wherever the masked one sees nothing."""
    kernel, centre = torch.zeros(*weight.shape[:2], size, size, dtype=torch.float64), size // 2
    weight = weight.double()
    if stack == "vertical":
        kernel[:, :, : weight.shape[2]] = weight
    elif stack == "horizontal":
        kernel[:, :, centre : centre + 1, : weight.shape[3]] = weight
    else:
        kernel[:, :, :centre] = weight[:, :, :centre]
        seen = centre + (mask == "B")
        kernel[:, :, centre, :seen] = weight[:, :, centre, :seen]
    return kernel


def truth(x: Tensor, weight: Tensor, bias: Tensor | None, size: int, mask: str, stack: str, dilation: int):
    kernel = padded_kernel(weight, size, stack, mask)
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double(), kernel, bias, padding=size // 2 * dilation, dilation=dilation)


def arguments(channels: tuple[int, int], shape: tuple[int, ...], size: int, stack: str, mask: str):
    kernel = kernel_shape(size, mask, stack)
    weight, bias = torch.randn(*channels[::-1], *kernel), torch.randn(channels[1])
    return torch.randn(shape[0], channels[0], *shape[1:]), weight, bias
