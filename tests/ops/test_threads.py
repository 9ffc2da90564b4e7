"""Ops with 8 threads, whatever the number of cores, beside the same with one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vqfast.functional import masked_conv2d, nearest_code, quantize, residual_codes

THREADS = 8  # each is worth starting for 2^21 multiplications


def alone_and_together(call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    alone = call()
    torch.set_num_threads(THREADS)
    try:
        return alone, call()
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("n, k, d", [(1, 140_000, 128), (5, 60_000, 64), (100, 4096, 64), (3000, 512, 16)])
def test_nearest_codes_are_the_same(n, k, d) -> None:
    x, codebook = torch.randn(n, d), torch.randn(k, d)
    codebook[k // 2 :] = codebook[: k - k // 2]  # the first of two alike, whoever finds the other
    alone, together = alone_and_together(lambda: [nearest_code(x, codebook)])
    assert torch.equal(*alone, *together)
    assert alone[0].max() < k // 2 + k % 2


@pytest.mark.parametrize("n", [7, 4000])
def test_quantisation_and_its_gradients_are_the_same(n) -> None:
    z_e, codebook = (
        torch.randn(n, 32, requires_grad=True),
        torch.randn(80_000 // n + 400, 32, requires_grad=True),
    )

    def step() -> list[Tensor]:
        out = quantize(z_e, codebook, return_statistics=True)
        loss = out.codebook_loss + 0.25 * out.commitment_loss + out.quantized.sum()
        return [out.indices, out.counts, out.sums, *torch.autograd.grad(loss, [z_e, codebook])]

    alone, together = alone_and_together(step)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], alone[0].bincount(minlength=len(codebook)))
    torch.testing.assert_close(alone, together)


def test_stages_are_the_same() -> None:
    z_e, books = torch.randn(2, 16, 900), torch.randn(3, 256, 16)
    alone, together = alone_and_together(lambda: [residual_codes(z_e, list(books))])
    assert torch.equal(*alone, *together)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_and_their_gradients_are_the_same(kernel) -> None:
    x, weight = (torch.randn(s).requires_grad_() for s in ((3, 48, 30, 31), (64, 48, kernel, kernel)))

    def step() -> list[Tensor]:
        out = masked_conv2d(x, weight, mask_type="B", activation="relu")
        return [out, *torch.autograd.grad(out.square().sum(), [x, weight])]

    alone, together = alone_and_together(step)
    for one, other in zip(alone, together, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()
