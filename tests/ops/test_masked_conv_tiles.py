"""Masked convolutions of enough channels for the CPU's tiles, which multiply pieces of bfloat16."""

from __future__ import annotations

import pytest
import torch

from tests.ops.convolutions import LAYOUTS, arguments, truth
from tests.ops.test_masked_conv import KINDS, check
from vqfast.functional import masked_conv2d

OP = "masked_conv"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stack, mask", KINDS)
@pytest.mark.parametrize("channels", [(32, 64), (49, 97), (130, 160), (128, 33)])
@pytest.mark.parametrize(
    "shape, dilation", [((2, 6, 35), 1), ((3, 7, 7), 1), ((1, 1, 300), 1), ((2, 9, 27), 2)]
)
def test_equals_float64_for_any_number_of_channels(
    backend, channels, shape, dilation, stack, mask, layout
) -> None:
    x, *rest = arguments(channels, shape, 3, stack, mask)
    check(LAYOUTS[layout](x), *rest, 3, mask, stack, dilation)


# Without neighbours that are computed together. Where zeros beside the grid are multiplied isn't said.
@pytest.mark.parametrize(
    "size, dilation, where", [(1, 1, "x"), (1, 1, "weight"), (1, 1, "grad"), (3, 2, "x")]
)
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 3e38, -1e30])
def test_infinite_and_huge_numbers_are_as_in_float32(backend, number, where, size, dilation) -> None:
    x, weight, _ = (
        None if t is None else t * 0.1 for t in arguments((160, 160), (2, 9, 27), size, "full", "B")
    )
    grad = torch.randn(2, 160, 9, 27)
    {"x": x, "weight": weight, "grad": grad}[where][1, 3, 0, 0] = number
    inputs = [t.requires_grad_() for t in (x, weight)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    out = masked_conv2d(*inputs, None, mask_type="B", dilation=dilation)
    want = truth(*doubles, None, size, "B", "full", dilation)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    wanted = [want, *torch.autograd.grad(want, doubles, grad.double())]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_tiny_numbers_are_off_by_less_than_the_smallest_normal_one(backend) -> None:
    x, weight, _ = arguments((96, 160), (2, 9, 17), 1, "full", "B")
    want = truth((x * 1e-36).double(), weight, None, 1, "B", "full", 1)
    out = masked_conv2d(x * 1e-36, weight, None, mask_type="B")
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=96 * 2e-38)
