"""Masked convolution, forward and backward, against a convolution whose kernel is multiplied by a mask.

Floor: the products of visible taps, once for the output and once for each of the two gradients.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import core
from benchmarks.core import Call, Case, Contenders, Floor, Outputs
from benchmarks.machine import DEVICE
from benchmarks.plain import PlainMasked
from vqfast.functional import masked_conv2d

Data = tuple[Tensor, Tensor]  # the input and the output's gradient


def contenders(channels: int, size: int, mask_type: str, backward: bool) -> Contenders:
    """The builders; all calls have the same weights."""

    def build(name: str) -> Call:
        conv = PlainMasked(channels, channels, size, mask_type).to(DEVICE)

        def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(x, weight * conv.mask, bias, padding=size // 2)

        def masked(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return masked_conv2d(x, weight, bias, mask_type=mask_type)

        call = {"vqfast": masked, "conv2d": plain, "compiled": plain}[name]
        if name == "compiled":
            call = core.compiled(plain)

        def forward(data: Data) -> Tensor:
            with torch.no_grad():
                return call(data[0], conv.weight, conv.bias)

        def both(data: Data) -> tuple[Tensor, ...]:
            x, grad = data
            inputs = x.detach().requires_grad_(), conv.weight, conv.bias
            output = call(*inputs)
            return output.detach(), *torch.autograd.grad(output, inputs, grad)

        return both if backward else forward

    return {name: partial(build, name) for name in ("vqfast", "conv2d", "compiled")}


def check(channels: int, size: int, mask_type: str, backward: bool, data: Data, outputs: Outputs) -> None:
    """Outputs and gradients equal float64's: those of the first image, and of the first channel's weights."""
    torch.manual_seed(0)  # as the contenders' weights
    conv = PlainMasked(channels, channels, size, mask_type).to(DEVICE).double()
    x, grad = (t[:1].double() for t in data)
    want = conv(x.requires_grad_())
    wanted = [want.detach()]
    if backward:
        wanted += torch.autograd.grad(want, x, grad)
        first = conv.weight[:1], conv.bias[:1]
        one = F.conv2d(data[0].double(), first[0] * conv.mask, first[1], padding=size // 2)
        wanted += torch.autograd.grad(one, first, data[1][:, :1].double())
    for name, output in outputs.items():
        for found, true in zip(output if backward else [output], wanted, strict=True):
            atol = 1e-3 * max(1.0, true.abs().max().item())
            torch.testing.assert_close(found[:1].double(), true, rtol=1e-3, atol=atol, msg=name)


def conv(
    size: int,
    mask_type: str,
    channels_last: bool = False,
    backward: bool = False,
    batch: int = 16,
    channels: int = 128,
    side: int = 32,
) -> Case:
    """A convolution of ``(batch, channels, side, side)`` to as many channels."""
    taps = size * size // 2 + (mask_type == "B")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = batch, channels, side, side
    products = 2.0 * batch * side * side * channels * channels * taps

    def data() -> Data:
        x, grad = (torch.randn(shape, device=DEVICE).contiguous(memory_format=layout) for _ in range(2))
        return x, grad

    kind = ", channels last" if channels_last else ""
    kind += ", and backward" if backward else ""
    settings = channels, size, mask_type, backward
    return Case(
        name=f"{size}x{size}, mask {mask_type}{kind}; {', '.join(map(str, shape))}",
        shape={"batch": batch, "channels": channels, "grid": side, "kernel": size},
        contenders=contenders(*settings),
        data=data,
        check=partial(check, *settings),
        floor=Floor(products * (3 if backward else 1)),
    )


CASES = [
    conv(size, mask_type, channels_last, backward)
    for size, mask_type in ((3, "B"), (7, "A"), (1, "B"))
    for channels_last in (False, True)
    for backward in (False, True)
]
