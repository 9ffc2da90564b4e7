from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vqfast.functional import nearest_code, nearest_unit_code
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


def squares(row: Tensor, codebook: Tensor) -> list[Fraction]:
    """Squared distances without any rounding."""
    return [
        sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(row.tolist(), code, strict=True))
        for code in codebook.tolist()
    ]


@pytest.mark.parametrize("exponents", [(200, 200), (-200, -200), (307, 307), (-307, -307), (-320, 307)])
def test_squares_beyond_what_float64_holds(backend, exponents) -> None:
    if backend == "triton":
        pytest.skip("compares float64 numbers of float32's range only, as documented")

    def numbers(*shape: int) -> Tensor:
        exponent = torch.randint(exponents[0], exponents[1] + 1, (shape[0], 1)).double()
        return torch.randn(shape).double() * 10**exponent

    for _ in range(10):
        x, codebook = numbers(20, 3).clamp(-1.7e308, 1.7e308), numbers(7, 3).clamp(-1.7e308, 1.7e308)
        x[0] = codebook[5]
        for row, index in zip(x, nearest_code(x, codebook).tolist(), strict=True):
            found = squares(row, codebook)
            assert found[index] <= min(found) * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("k, d", [(33, 9), (300, 300)])
def test_squares_below_what_float32_holds(backend, assert_nearest, k, d) -> None:
    x, codebook = torch.randn(100, d) * 1e-37, torch.randn(k, d) * 1e-37
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_vectors_and_codes_of_all_magnitudes_together(backend, assert_nearest) -> None:
    x, codebook = (torch.randn(n, 9) * 10 ** (torch.rand(n, 1) * 36 - 18) for n in (500, 65))
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_vectors_between_codes_where_scores_are_not_kept(backend) -> None:
    """Many short codes of several lengths, whose groups are scored again for their candidates."""
    trials, num = (60, 700) if backend == "native" else (1, 40)  # an interpreted kernel is slow
    for _ in range(trials):
        codebook = torch.randn(2500, 9) * 10 ** (torch.rand(2500, 1) * 4 - 2)
        x = codebook[torch.randint(2500, (2, num))].mean(0)
        distances = torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
        chosen = distances.gather(1, nearest_code(x, codebook).unsqueeze(1)).squeeze(1)
        assert (chosen <= distances.amin(1) * (1 + 1e-12)).all()


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
def test_vector_that_is_not_finite_gets_index_0_and_leaves_the_others(backend, dtype, bad) -> None:
    codebook = torch.arange(20).to(dtype).view(20, 1).repeat(1, 5)
    x = codebook.clone()
    x[::3, 2] = bad
    want = [0 if row % 3 == 0 else row for row in range(20)]
    assert nearest_code(x, codebook).tolist() == want


@pytest.mark.parametrize(
    "offset, spread, scale", [(0, 1, 1), (100, 1, 1), (1000, 1, 1), (0, 1e-3, 1), (0, 1, 1e18)]
)
@pytest.mark.parametrize(
    "n, k, d", [(1, 600, 256), (13, 1025, 40), (125, 2048, 8), (125, 600, 129), (40, 30, 4096)]
)
def test_few_vectors_and_many_codes(backend, assert_nearest, n, k, d, offset, spread, scale) -> None:
    x, codebook = (scale * (torch.randn(d) + spread * torch.randn(count, d) + offset) for count in (n, k))
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("data", ["one component", "few components", "heavy tails", "near codes"])
@pytest.mark.parametrize("d", [70, 259])
def test_components_of_all_magnitudes(backend, assert_nearest, d, data, dtype) -> None:
    """A vector's small components may decide, whatever its large ones' units are."""
    x, codebook = torch.randn(200, d), torch.randn(300, d)
    if data == "one component":
        x[:, 3], codebook[:, 3] = x[:, 3].sign() * 1e4, codebook[:, 3].sign() * 1e4
    elif data == "few components":
        x, codebook = (torch.where(torch.rand_like(t) < 0.02, 300 * t, t) for t in (x, codebook))
    elif data == "heavy tails":
        x, codebook = (torch.distributions.StudentT(torch.tensor(1.5)).sample(t.shape) for t in (x, codebook))
    else:
        x = codebook[torch.randint(300, (200,))] + 1e-3 * x
    x, codebook = x.to(dtype), codebook.to(dtype)
    assert_nearest(nearest_code(x, codebook), x, codebook)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e8, 1e25])
def test_code_far_from_the_others(backend, assert_nearest, far) -> None:
    x, codebook = torch.randn(50, 24), torch.randn(300, 24)
    codebook[100] *= far
    assert_nearest(nearest_code(x, codebook), x, codebook)


def test_more_codes_at_one_distance_than_are_kept(backend) -> None:
    """Dead codes are often all alike."""
    codebook = torch.randint(-3, 4, (500, 12)).float()
    codebook[70:] = 5
    assert nearest_code(torch.full((40, 12), 4.9), codebook).tolist() == [70] * 40


@pytest.mark.parametrize("n", [7, 300])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_code_that_is_not_finite_is_never_chosen_while_a_finite_one_exists(backend, n, bad) -> None:
    x, codebook = torch.randn(n, 10), torch.randn(400, 10)
    x[3, 5] = torch.nan
    codebook[::50, 7] = bad
    codebook[390] = torch.nan
    far = torch.where(codebook.isfinite().all(-1, keepdim=True), codebook, 1e9)
    finite = torch.cdist(x.double(), far.double()).argmin(-1)
    finite[3] = 0
    assert torch.equal(nearest_code(x, codebook), finite)
    assert not nearest_code(x, codebook[::50]).any()


@pytest.mark.parametrize("n, k, lead", [(5, 30000, ()), (100, 2000, ()), (500, 2000, ()), (20, 3000, (3,))])
def test_threads_change_nothing(backend, n, k, lead) -> None:
    """Of few vectors they share the codes."""
    x, codebook = torch.randn(*lead, n, 16), torch.randn(*lead, k, 16)
    codebook[..., k // 2 :, :] = codebook[..., : k // 2, :]  # the first of two alike, whoever finds the other
    x[..., 0, 3] = torch.inf
    spoilt = codebook.clone()
    spoilt[..., [k // 3, k - 1], 2] = torch.nan
    one, other = nearest_code(x, codebook), nearest_code(x, spoilt)
    torch.set_num_threads(3)
    assert torch.equal(nearest_code(x, codebook), one)
    assert torch.equal(nearest_code(x, spoilt), other)
    torch.set_num_threads(1)
    assert one.max() < k // 2
    assert not other[..., 0].any()
    assert torch.equal(other[..., 1:] == k // 3 + k // 2, one[..., 1:] == k // 3)


@pytest.mark.parametrize("n, lead", [(577, ()), (1025, ()), (700, (5,))])
def test_every_vector_is_in_one_block_of_some_thread(backend, n, lead) -> None:
    x, codebook = torch.randn(*lead, n, 256), torch.randn(*lead, 60, 256)
    wanted = nearest_code(x.double(), codebook.double())
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(nearest_code(x, codebook), wanted)
    torch.set_num_threads(1)


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


def test_compiles_into_one_graph_for_any_number_of_vectors(backend) -> None:
    torch.compiler.reset()
    compiled = torch.compile(nearest_code, fullgraph=True, backend="aot_eager")
    codebook = torch.randn(6, 4)
    for n in (5, 9, 31):
        x = torch.randn(2, n, 4)
        assert torch.equal(compiled(x, codebook), nearest_code(x, codebook))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n, k, d", [(1, 1, 1), (5, 40, 300), (500, 300, 65), (130, 1000, 7)])
def test_codes_divided_by_their_lengths(backend, assert_nearest, n, k, d, dtype) -> None:
    x, codebook = torch.randn(n, d).to(dtype), (torch.randn(k, d) * 10 ** (torch.rand(k, 1) * 6)).to(dtype)
    codebook[k // 2] = 0
    x /= x.float().norm(dim=-1, keepdim=True).to(dtype)
    unit = torch.nn.functional.normalize(codebook, dim=-1)
    assert_nearest(nearest_unit_code(x, codebook), x, unit)


def test_codes_divided_by_their_lengths_of_codebooks_that_blocks_and_threads_share(backend) -> None:
    x, codebook = torch.randn(3, 700, 40), torch.randn(3, 300, 40)
    lengths = torch.linalg.vector_norm(codebook, dim=-1)
    codebook[1, 290, 3] = torch.nan
    want = torch.stack([nearest_code(x[i], codebook[i] / lengths[i, :, None]) for i in range(3)])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(nearest(x, codebook, lengths), want)
        finally:
            torch.set_num_threads(1)
    assert (want[1] != 290).all()


def test_opcheck_with_lengths(backend) -> None:
    torch.library.opcheck(nearest, (torch.randn(9, 4), torch.randn(7, 4), torch.rand(7) + 1))


@pytest.mark.parametrize(
    "codebook, message",
    [
        (torch.zeros(2, 4, 3), r"codebook has shape \(2, 4, 3\); want \(K, D\)"),
        (torch.zeros(0, 3), r"codebook has shape \(0, 3\); want \(K, D\)"),
        (torch.zeros(4, 5), "z_e has 3 channels .*; want embedding_dim = 5"),
    ],
)
def test_bad_codebooks_to_be_divided_are_named(codebook, message) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_unit_code(torch.zeros(2, 3), codebook)
