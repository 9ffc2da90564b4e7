from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqfast.functional import nearest_code
from vqfast.ops.nearest.op import nearest

OP = "nearest"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def clustered(dtype: torch.dtype, spread: float = 1.0, offset: float = 0.0):
    """8192 vectors, 512 codes ``spread`` apart, 64 channels."""
    codes = torch.randn(1, 64) + spread * torch.randn(512, 64) if spread < 1 else torch.randn(512, 64)
    return (torch.randn(8192, 64) + offset).to(dtype), (codes + offset).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n, k, d",
    [(1, 1, 1), (3, 17, 1), (17, 3, 1000), (1000, 3, 17), (17, 1000, 3), (1, 1000, 17), (1000, 1, 1)],
)
def test_odd_sizes(backend, assert_nearest, n, k, d, dtype) -> None:
    x, codebook = torch.randn(n, d).to(dtype), torch.randn(k, d).to(dtype)
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("spread, offset", [(1, 0), (1e-3, 0), (1, 100), (1, 1000)])
def test_no_wrong_code_of_8192_near_one_another_or_far_from_zero(
    backend, assert_nearest, spread, offset
) -> None:
    x, codebook = clustered(torch.float32, spread, offset)
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_wrong_code_in_low_precision(backend, assert_nearest, dtype) -> None:
    x, codebook = clustered(dtype, spread=0.05)
    assert_nearest(nearest_code(x[:2048], codebook), x[:2048], codebook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e18])
def test_any_magnitude(backend, assert_nearest, scale, dtype) -> None:
    x, codebook = (torch.randn(100, 9) * scale).to(dtype), (torch.randn(33, 9) * scale).to(dtype)
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_rows_and_codes_of_all_magnitudes_together(backend, assert_nearest) -> None:
    x, codebook = (torch.randn(n, 9) * 10 ** (torch.rand(n, 1) * 36 - 18) for n in (500, 65))
    assert_nearest(nearest_code(x, codebook), x, codebook)


@given(data=st.data())
def test_small_integers_broadcast_and_tie_exactly(backend, assert_nearest, data) -> None:
    """Integers have no rounding in any dtype, and many ties: the lowest index wins."""
    lead = data.draw(
        st.sampled_from([((), ()), ((2,), ()), ((), (3,)), ((2, 1), (3,)), ((1,), (2,)), ((0,), ())])
    )
    n, k, d = (data.draw(st.integers(low, 9)) for low in (0, 1, 1))
    dtype = data.draw(st.sampled_from(DTYPES))
    offset = data.draw(st.sampled_from([0, 100, -100]))
    x = (torch.randint(-2, 3, (*lead[0], n, d)) + offset).to(dtype)
    codebook = (torch.randint(-2, 3, (*lead[1], k, d)) + offset).to(dtype)
    indices = nearest_code(x, codebook)
    assert indices.shape[:-1] == torch.broadcast_shapes(*lead)
    assert_nearest(indices, x, codebook, exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 128])
def test_duplicate_and_symmetric_codes_give_the_lowest_index(backend, offset, dtype) -> None:
    code = torch.randint(1, 9, (1, 64))
    signs = torch.tensor([[1], [-1]]).repeat(300, 1)
    codebook = (signs * code + offset).to(dtype)  # c, -c, c, -c ...
    x = (torch.stack([code[0], -code[0], 0 * code[0]]) + offset).to(dtype)
    assert nearest_code(x, codebook).tolist() == [0, 1, 0]
    assert nearest_code(x, codebook[5:]).tolist() == [1, 0, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_that_is_not_finite_gives_index_0_and_leaves_the_others(backend, dtype, bad) -> None:
    codebook = torch.arange(20).to(dtype).view(20, 1).repeat(1, 5)
    x = codebook.clone()
    x[::3, 2] = bad
    want = [0 if row % 3 == 0 else row for row in range(20)]
    assert nearest_code(x, codebook).tolist() == want


LAYOUTS = {
    "transposed": lambda n, d: torch.randn(d, n).T,
    "every other row": lambda n, d: torch.randn(2 * n, d)[::2],
    "every other channel": lambda n, d: torch.randn(n, 2 * d)[:, ::2],
    "shifted by one number": lambda n, d: torch.randn(n * d + 1)[1:].view(n, d),
    "one row, expanded": lambda n, d: torch.randn(1, d).expand(n, d),
    "one channel, expanded": lambda n, d: torch.randn(n, 1).expand(n, d),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend, assert_nearest, layout, dtype) -> None:
    make = LAYOUTS[layout]
    x, codebook = make(33, 17).to(dtype), make(29, 17).to(dtype)
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_mixed_dtypes_count_at_their_given_values(backend, assert_nearest) -> None:
    x, codebook = torch.randn(100, 5).bfloat16(), torch.randn(30, 5).double()
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_gradient_mode_makes_no_difference(backend) -> None:
    x, codebook = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    indices = nearest_code(x, codebook)
    assert not indices.requires_grad
    with torch.inference_mode():
        assert torch.equal(nearest_code(x, codebook), indices)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, shape, dtype) -> None:
    torch.library.opcheck(nearest, (torch.randn(shape, dtype=dtype), torch.randn(7, 4, dtype=dtype)))


def test_compiles_into_one_graph_for_any_number_of_rows(backend) -> None:
    torch.compiler.reset()
    compiled = torch.compile(nearest_code, fullgraph=True, backend="aot_eager")
    codebook = torch.randn(6, 4)
    for n in (5, 9, 31):
        x = torch.randn(2, n, 4)
        assert torch.equal(compiled(x, codebook), nearest_code(x, codebook))
