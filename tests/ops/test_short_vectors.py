"""Searches of short vectors, up to 16 channels: first scores are integers where the CPU multiplies int8."""

from __future__ import annotations

import pytest
import torch

from vqfast.functional import nearest_code

OP = "nearest"
CHANNELS = [1, 3, 4, 5, 8, 9, 13, 16]


def corners(k: int, d: int) -> torch.Tensor:
    """Codes as long as codes of components up to 1 can be, each a little off."""
    return torch.randn(k, d).sign() * (1 - 1e-3 * torch.rand(k, d))


def magnitudes(k: int, d: int) -> torch.Tensor:
    return torch.randn(k, d) * 10 ** (12 * torch.rand(k, 1) - 6)


def some_longer(k: int, d: int) -> torch.Tensor:
    codes = torch.randn(k, d)
    codes[torch.rand(k) < 0.02] *= 300
    return codes


@pytest.mark.parametrize("d", CHANNELS)
@pytest.mark.parametrize("codes", [torch.randn, corners, magnitudes, some_longer])
def test_vectors_of_every_size_beside_the_codes(backend, codes, d, assert_nearest) -> None:
    """A vector much shorter than the codes is where the integers are largest."""
    num = 1500 if backend == "native" else 300
    codebook = codes(num, d)
    for scale in (1e-9, 1e-2, 1, 1e4):
        x = torch.randn(130, d) * scale
        assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("d", [2, 8, 15])
def test_near_codes_far_from_zero(backend, d, assert_nearest) -> None:
    codebook = torch.randn(900, d) + 1e3
    x = codebook[torch.randint(900, (150,))] + 1e-2 * torch.randn(150, d)
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("distinct", [1, 5, 200])
def test_the_first_of_equal_short_codes_is_taken(backend, distinct) -> None:
    codebook = torch.randn(distinct, 6).repeat(1000 // distinct, 1)
    picked = torch.randint(distinct, (400,))
    assert torch.equal(nearest_code(codebook[picked], codebook), picked)


def test_short_codes_that_are_not_finite(backend) -> None:
    codebook = torch.randn(1200, 7)
    codebook[::3], codebook[1::3] = torch.nan, torch.inf
    picked = torch.arange(2, 1200, 3)
    assert torch.equal(nearest_code(codebook[picked], codebook), picked)
    assert nearest_code(torch.randn(100, 7), torch.full((90, 7), torch.nan)).eq(0).all()
