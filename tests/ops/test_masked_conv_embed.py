"""The masked convolution of codes: ``embed`` beside the convolution of one-hot vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.convolutions import DTYPES, TOLERANCE
from vqfast.functional import kernel_shape, visible_taps
from vqfast.ops.masked_conv import op

OP = "masked_conv"


def one_hot(codes: Tensor, weight: Tensor, bias: Tensor | None, *where) -> Tensor:
    x = F.one_hot(codes, weight.shape[1]).movedim(-1, 1).to(weight)
    return op.masked_conv2d(x, weight, bias, None, None, *where, "none")[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 1, 1), (1, 1, 40), (0, 3, 3)])
@pytest.mark.parametrize(
    "stack, mask, dilation", [("full", "A", 1), ("vertical", "B", 2), ("horizontal", "B", 3)]
)
def test_embed_is_the_convolution_of_one_hot_vectors(backend, dtype, shape, stack, mask, dilation) -> None:
    """With channels beside a tile's."""
    taps, anchor = visible_taps(kernel_shape(5, mask, stack), mask, stack)
    for codes, channels in ((6, 4), (3, 33)):
        weight = torch.randn(channels, codes, *kernel_shape(5, mask, stack)).to(dtype).requires_grad_()
        bias = torch.randn(channels).to(dtype).requires_grad_()
        indices, doubles = (
            torch.randint(codes, shape),
            [t.detach().double().requires_grad_() for t in (weight, bias)],
        )
        where = taps, anchor, (dilation, dilation)
        out, want = op.embed(indices, weight, bias, *where), one_hot(indices, *doubles, *where)
        assert out.is_contiguous(memory_format=torch.channels_last)
        grad = torch.randn(want.shape).to(dtype)
        got = [out, *torch.autograd.grad(out, (weight, bias), grad)]
        wanted = [want, *torch.autograd.grad(want, doubles, grad.double())]
        for a, b in zip(got, wanted, strict=True):
            tolerance = TOLERANCE[dtype] * max(1, b.abs().max().item() if b.numel() else 0)
            torch.testing.assert_close(a, b.to(dtype), rtol=TOLERANCE[dtype], atol=tolerance)


def test_embed_without_a_bias_or_visible_taps(backend) -> None:
    weight, codes = torch.randn(3, 4, 3, 3), torch.randint(4, (2, 3, 3))
    where = [1, 1], [1, 1]
    torch.testing.assert_close(
        op.embed(codes, weight, None, 5, *where), one_hot(codes, weight, None, 5, *where)
    )
    assert not op.embed(codes, weight, None, 0, *where).any()
    grads = op.embed_backward(torch.ones(2, 3, 3, 3), codes, weight, 0, *where)
    assert not grads[0].any() and (grads[1] == 18).all()


@pytest.mark.parametrize("bad", [-1, 5])
def test_embed_refuses_indices_out_of_range(backend, bad) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        op.embed(torch.full((1, 2, 2), bad), torch.randn(3, 4, 3, 3), None, 5, [1, 1], [1, 1])


def test_embed_gradcheck_opcheck_and_one_graph(backend) -> None:
    codes, where = torch.randint(4, (2, 3, 4)), (5, [1, 1], [1, 1])
    weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4, 3, 3), (3,)))
    call = lambda weight, bias: op.embed(codes, weight, bias, *where)  # noqa: E731
    assert torch.autograd.gradcheck(call, (weight, bias)) and torch.autograd.gradgradcheck(
        call, (weight, bias)
    )
    torch.library.opcheck(op.embed, (codes, weight, bias, *where))
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(weight, bias), call(weight, bias))
