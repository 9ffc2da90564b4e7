"""Searches of up to eight vectors, which compare them with the codes where they are."""

from __future__ import annotations

import pytest
import torch

from vqfast.functional import nearest_code, quantize

OP = "nearest"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("k, d", [(1, 1), (3, 2), (700, 5), (257, 8), (600, 31), (300, 67)])
def test_few_vectors_at_any_offset(backend, n, k, d, assert_nearest) -> None:
    codebook = torch.randn(k, d) + 1000
    x = torch.randn(n, d) + 1000
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
def test_few_vectors_whose_squares_leave_float32(backend, scale, assert_nearest) -> None:
    codebook, x = torch.randn(400, 12) * scale, torch.randn(5, 12) * scale
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_few_vectors_take_the_first_of_equal_codes(backend) -> None:
    codebook = torch.randn(3, 7).repeat(300, 1)
    assert nearest_code(codebook[[2, 0, 1]], codebook).tolist() == [2, 0, 1]
    assert nearest_code(torch.zeros(6, 7), torch.eye(7).repeat(50, 1)).tolist() == [0] * 6


def test_few_vectors_and_codes_that_are_not_finite(backend) -> None:
    codebook = torch.randn(50, 9)
    codebook[::2] = torch.nan
    codebook[1] = torch.inf
    x = codebook[[3, 5, 7, 9]] + 1e-3
    x[1, 4], x[2, 0] = torch.nan, -torch.inf
    assert nearest_code(x, codebook).tolist() == [3, 0, 0, 9]
    assert nearest_code(x[:1], torch.full((4, 9), torch.nan)).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_few_vectors_of_other_types_and_strides(backend, dtype, assert_nearest) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the kernels compare float64 numbers in float32's range")
    x, codebook = torch.randn(11, 6, 4).to(dtype), torch.randn(100, 11)
    for part in (x[:, :, 0].T, x[:, 1].T):
        assert_nearest(nearest_code(part, codebook), part, codebook)


def test_few_vectors_in_stages(backend) -> None:
    """The backend of the search has the statistics and the residuals of few vectors too."""
    z_e, books = torch.randn(2, 10, 3), torch.randn(4, 30, 10)
    residual = z_e.transpose(1, 2).double()
    out = quantize(z_e, books[0], return_statistics=True)
    indices = torch.cdist(residual, books[0].double()).argmin(-1)
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.counts, indices.flatten().bincount(minlength=30))
