"""Whatever the numbers are, a search takes the work of random ones, and is exact."""

from __future__ import annotations

import pytest
import torch

from benchmarks import degenerate
from vqfast.functional import nearest_code, residual_codes
from vqfast.ops import registry

OP = "nearest"
SHAPES = [(1024, 512, 64), (1500, 1024, 130), (700, 4096, 8), (2000, 600, 2)]


@pytest.fixture
def work():
    """What a search takes for each vector: products of rounded numbers, candidates, float64 distances."""
    if reason := registry.refusal("nearest", "native", torch.zeros(1)):
        pytest.skip(reason)

    def count(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        return torch.ops.vqfast_native.nearest_counts(x, codebook) / len(x)

    return count


@pytest.mark.parametrize("n, k, d", SHAPES)
@pytest.mark.parametrize("kind", degenerate.KINDS)
def test_no_kind_of_data_takes_more_work_than_random_data(work, n, k, d, kind) -> None:
    x, codebook = torch.randn(n, d), torch.randn(k, d)
    products, candidates, distances = work(*degenerate.KINDS[kind](x, codebook))
    usual = work(x, codebook)
    assert products <= 1.1 * usual[0]
    assert candidates <= usual[1] + 50
    assert distances <= usual[2] + 25  # each takes the time of some tens of products
    assert usual[2] < 3


@pytest.mark.parametrize("n, k, d", SHAPES)
@pytest.mark.parametrize("kind", degenerate.KINDS)
def test_every_kind_of_data_is_exact(backend, n, k, d, kind) -> None:
    n = n if backend != "triton" else 40
    data = degenerate.KINDS[kind](torch.randn(n, d), torch.randn(k, d))
    degenerate.check(data, {"vqfast": nearest_code(*data)})


@pytest.mark.parametrize("few", [1, 30, 600])
def test_vectors_and_codes_that_float32_cannot_hold_together(backend, few, assert_nearest) -> None:
    """Among codes near zero others far away, for vectors near both and beyond."""
    codebook = torch.randn(700, 12)
    codebook[5::9] *= 1e20
    codebook[6::9] *= 1e-20
    x = torch.cat([torch.randn(few, 12) * scale for scale in (1e-25, 1, 1e12, 1e20, 1e30)])
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_lattice_whose_every_code_ties(backend) -> None:
    """All corners of a cube are as far from its middle; half of them from that of a side."""
    corners = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 10)
    x = torch.cat([torch.zeros(30, 10), torch.eye(10), -torch.eye(10)])
    want = [0] * 30 + [0] * 10 + [2 ** (9 - side) for side in range(10)]
    assert nearest_code(x, corners).tolist() == want


@pytest.mark.parametrize("threads", [1, 3])
def test_repeats_of_several_codebooks_and_of_lengths(backend, threads) -> None:
    from vqfast.ops.nearest.op import nearest

    torch.set_num_threads(threads)
    codebooks = torch.randn(3, 50, 20).repeat(1, 12, 1)
    codebooks[1] = 0
    x, lengths = torch.randn(3, 600, 20), torch.full((3, 600), 2.0)
    try:
        assert nearest_code(x, codebooks).amax().item() < 50
        assert not nearest_code(x, codebooks)[1].any()
        assert torch.equal(nearest(x, codebooks, lengths), nearest_code(x, codebooks / 2))
    finally:
        torch.set_num_threads(1)


def test_stages_find_the_first_of_equal_codes() -> None:
    z = torch.randn(2, 16, 500)
    codebooks = torch.randn(3, 40, 16).repeat(1, 20, 1)
    codebooks[1] = 0
    found = residual_codes(z, list(codebooks))
    assert found.amax() < 40
    assert not found[..., 1].any()
