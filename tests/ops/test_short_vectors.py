"""Searches of short vectors, up to 16 channels: first scores are integers where the CPU multiplies those."""

from __future__ import annotations

import pytest
import torch

from vqfast.functional import nearest_code

OP = "nearest"
CHANNELS = [1, 2, 3, 4, 5, 8, 9, 13, 16]


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
        x = torch.randn(230, d) * scale
        assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("d", CHANNELS)
@pytest.mark.parametrize("codes", [torch.randn, some_longer])
def test_vectors_of_all_sizes_side_by_side(backend, codes, d, assert_nearest) -> None:
    """Their units differ; those that aren't finite have none."""
    codebook = codes(2500 if backend == "native" else 300, d)
    x = torch.randn(200, d) * 10 ** (12 * torch.rand(200, 1) - 6)
    x[::31], x[::37], x[::41] = torch.nan, torch.inf, 0
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("d", [2, 4, 8, 15])
def test_near_codes_far_from_zero(backend, d, assert_nearest) -> None:
    codebook = torch.randn(900, d) + 1e3
    x = codebook[torch.randint(900, (250,))] + 1e-2 * torch.randn(250, d)
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("d", [2, 4, 6])
@pytest.mark.parametrize("distinct", [1, 5, 200])
def test_the_first_of_equal_short_codes_is_taken(backend, distinct, d) -> None:
    codebook = torch.randn(distinct, d).repeat(1000 // distinct, 1)
    picked = torch.randint(distinct, (400,))
    assert torch.equal(nearest_code(codebook[picked], codebook), picked)


@pytest.mark.parametrize("d", [4, 8, 40])
def test_runs_of_equal_vectors_that_lie_between_many_codes(backend, d, assert_nearest) -> None:
    """Where one block of vectors was lost, the next one leaves out those that equal the one before."""
    num = 9000 if backend == "native" else 300
    codebook = torch.randn(600, d).sign()
    x = torch.randn(num, d).sign() * (torch.arange(num) % 3000 > 2500)[:, None]
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("d", [3, 7])
def test_short_codes_that_are_not_finite(backend, d) -> None:
    codebook = torch.randn(1200, d)
    codebook[::3], codebook[1::3] = torch.nan, torch.inf
    picked = torch.arange(2, 1200, 3)
    assert torch.equal(nearest_code(codebook[picked], codebook), picked)
    assert nearest_code(torch.randn(200, d), torch.full((90, d), torch.nan)).eq(0).all()
