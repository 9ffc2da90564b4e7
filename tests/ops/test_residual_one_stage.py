from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vqfast.functional import Quantized, quantize
from vqfast.ops.residual import op

OP = "residual"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float16, torch.bfloat16),
]
LAYOUTS = {  # (vectors of D channels, where the channels stand)
    "rows": lambda d: (torch.randn(17, d), 1),
    "one vector": lambda d: (torch.randn(1, d), 1),
    "audio": lambda d: (torch.randn(2, d, 33), 1),
    "image": lambda d: (torch.randn(2, d, 3, 5), 1),
    "video": lambda d: (torch.randn(2, d, 2, 3, 1), 1),
    "channels_last image": lambda d: (torch.randn(2, d, 3, 5).to(memory_format=torch.channels_last), 1),
    "channels at the end": lambda d: (torch.randn(2, 3, 5, d), -1),
    "channels in front": lambda d: (torch.randn(d, 17), 0),
    "transposed": lambda d: (torch.randn(2, d, 3, 5).transpose(2, 3), 1),
    "every other row": lambda d: (torch.randn(2, d, 6, 5)[:, :, ::2], 1),
    "every other channel": lambda d: (torch.randn(2, 2 * d, 5)[:, ::2], 1),
    "expanded over space": lambda d: (torch.randn(2, d, 1, 1).expand(2, d, 3, 5), 1),
    "expanded over channels": lambda d: (torch.randn(2, 1, 7).expand(2, d, 7), 1),
}


def tolerance(dtype: torch.dtype, codebook: Tensor | None = None) -> dict[str, float]:
    """Rounding of sums in float32 or wider, and of the result in ``dtype``."""
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    return {"rtol": rtol, "atol": rtol}


def check_outputs(out: Quantized, z_e: Tensor, codebook: Tensor, channel_dim: int, assert_nearest) -> None:
    """Every output against its definition in float64, given the indices, and these against all distances."""
    rows = z_e.detach().double().movedim(channel_dim, -1)
    flat, indices = rows.reshape(-1, rows.shape[-1]), out.indices.flatten()
    assert out.indices.shape == rows.shape[:-1]
    assert_nearest(indices, flat, codebook)

    wide = torch.promote_types(z_e.dtype, codebook.dtype)
    wide = torch.promote_types(wide, torch.float32)
    z_q = codebook.detach()[out.indices].movedim(-1, channel_dim)
    assert torch.equal(out.quantized, z_q.to(z_e.dtype))
    assert out.quantized.stride() == torch.empty_like(z_e).stride()
    error = (z_q.double() - z_e.double()).square().mean()
    for loss in (out.codebook_loss, out.commitment_loss):
        torch.testing.assert_close(loss, error.to(wide), **tolerance(wide))
    members = [flat[indices == k] for k in range(len(codebook))]
    assert out.counts.dtype == torch.int64
    assert out.counts.tolist() == [len(rows) for rows in members]
    sums = torch.stack([rows.sum(0) for rows in members])
    torch.testing.assert_close(out.sums, sums.to(wide), **tolerance(wide))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_in_any_layout(backend, assert_nearest, layout, dtype) -> None:
    z_e, channel_dim = LAYOUTS[layout](6)
    z_e, codebook = z_e.to(dtype), torch.randn(11, 6).to(dtype)
    check_outputs(
        quantize(z_e, codebook, channel_dim=channel_dim, return_statistics=True),
        z_e,
        codebook,
        channel_dim,
        assert_nearest,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n, k, d", [(1, 1, 1), (3, 17, 1), (17, 3, 1000), (1000, 3, 17), (17, 1000, 3), (150, 9, 70)]
)
def test_outputs_at_odd_sizes(backend, assert_nearest, n, k, d, dtype) -> None:
    z_e, codebook = torch.randn(3, d, n).to(dtype), torch.randn(k, d).to(dtype)
    check_outputs(quantize(z_e, codebook, return_statistics=True), z_e, codebook, 1, assert_nearest)


@pytest.mark.parametrize("types", MIXED)
def test_outputs_of_mixed_dtypes(backend, assert_nearest, types) -> None:
    z_e, codebook = torch.randn(2, 5, 9).to(types[0]), torch.randn(7, 5).to(types[1])
    check_outputs(quantize(z_e, codebook, return_statistics=True), z_e, codebook, 1, assert_nearest)


@pytest.mark.parametrize("spread, offset", [(1, 0), (1e-3, 0), (1, 100), (1, 1000)])
def test_outputs_of_codes_near_one_another_or_far_from_zero(backend, assert_nearest, spread, offset) -> None:
    codebook = torch.randn(1, 64) * (spread < 1) + spread * torch.randn(128, 64) + offset
    z_e = torch.randn(2, 64, 16, 16) + offset
    check_outputs(quantize(z_e, codebook, return_statistics=True), z_e, codebook, 1, assert_nearest)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_indices_at_any_magnitude(backend, assert_nearest, scale, dtype) -> None:
    z_e, codebook = (torch.randn(50, 9) * scale).to(dtype), (torch.randn(33, 9) * scale).to(dtype)
    out = quantize(z_e, codebook)
    assert_nearest(out.indices, z_e, codebook)
    assert torch.equal(out.quantized, codebook[out.indices])


@given(data=st.data())
def test_small_integers_tie_exactly(backend, assert_nearest, data) -> None:
    """Integers have no rounding in any dtype, and many ties: the lowest index wins."""
    n, k, d, t = (data.draw(st.integers(low, 9)) for low in (0, 1, 1, 0))
    dtype = data.draw(st.sampled_from(DTYPES))
    offset = data.draw(st.sampled_from([0, 100]))
    z_e = (torch.randint(-2, 3, (n, d, t)) + offset).to(dtype)
    codebook = (torch.randint(-2, 3, (k, d)) + offset).to(dtype)
    indices = quantize(z_e, codebook).indices
    assert_nearest(indices, z_e.movedim(1, -1), codebook, exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vector_that_is_not_finite_quantises_to_nan_with_index_0_and_a_nan_loss(backend, bad, dtype) -> None:
    codebook = torch.arange(1, 9).to(dtype).view(8, 1).repeat(1, 3)
    z_e = codebook[:, :, None].repeat(1, 1, 2)  # sample b holds code b, twice
    z_e[4, 1, 0] = bad
    out = quantize(z_e, codebook)
    want = z_e.clone()
    want[4, :, 0] = torch.nan
    torch.testing.assert_close(out.quantized, want, rtol=0, atol=0, equal_nan=True)
    assert out.indices.tolist() == [[0, 4] if b == 4 else [b, b] for b in range(8)]
    assert out.codebook_loss.isnan()
    assert out.commitment_loss.isnan()


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
def test_no_vectors_give_empty_outputs_a_nan_loss_and_zero_gradients(backend, shape) -> None:
    z_e, codebook = torch.zeros(shape, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    out = quantize(z_e, codebook, return_statistics=True)
    assert out.quantized.shape == shape
    assert out.indices.shape == (shape[0], *shape[2:])
    assert out.codebook_loss.isnan()
    assert out.counts.tolist() == [0, 0, 0]
    assert not out.sums.any()
    (out.quantized.sum() + out.codebook_loss + out.commitment_loss).backward()
    assert z_e.grad.shape == shape
    assert not codebook.grad.any()


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("types", [*((dtype, dtype) for dtype in DTYPES), *MIXED])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_straight_through_and_the_closed_forms(backend, layout, types, wanted) -> None:
    z_e, channel_dim = LAYOUTS[layout](6)
    z_e = z_e.to(types[0]).requires_grad_(wanted[0])
    codebook = torch.randn(11, 6).to(types[1]).requires_grad_(wanted[1])
    out = quantize(z_e, codebook, channel_dim=channel_dim)
    weights = torch.randn(z_e.shape).to(types[0])
    loss = (weights * out.quantized).sum() + 0.7 * out.codebook_loss + 0.3 * out.commitment_loss
    loss.backward()

    rows, codes = z_e.detach().double().movedim(channel_dim, -1), codebook.detach().double()
    to_code = rows - codes[out.indices]
    if wanted[0]:
        commitment = 0.3 * 2 / z_e.numel() * to_code.movedim(-1, channel_dim)
        want = (weights.double() + commitment).to(types[0])
        torch.testing.assert_close(z_e.grad, want, **tolerance(types[0]))
    if wanted[1]:
        slopes = [-to_code[out.indices == k].sum(0) for k in range(len(codes))]
        want = (0.7 * 2 / z_e.numel() * torch.stack(slopes)).to(types[1])
        torch.testing.assert_close(codebook.grad, want, **tolerance(types[1]))


def test_losses_pass_gradcheck_and_gradgradcheck(backend) -> None:
    """By what they aren't constant in; second derivatives of all: ``test_transforms.py``."""
    z_e = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        check(lambda e: quantize(z_e.detach(), e).codebook_loss, codebook)
        check(lambda z: quantize(z, codebook.detach()).commitment_loss, z_e)
    torch.autograd.gradgradcheck(lambda z: quantize(z, codebook.detach()).quantized, z_e)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("layout", ["rows", "channels_last image", "transposed", "expanded over space"])
def test_opcheck(backend, layout, statistics) -> None:
    z_e, channel_dim = LAYOUTS[layout](4)
    codebook = torch.randn(7, 4, requires_grad=True)
    args = (z_e.detach().requires_grad_(), codebook, channel_dim, statistics)
    torch.library.opcheck(op.quantize, args)


@pytest.mark.slow
@pytest.mark.parametrize("grad_layout", ["as z_e", "contiguous", "expanded"])
@pytest.mark.parametrize(
    "layout", ["rows", "image", "channels_last image", "transposed", "channels at the end"]
)
def test_opcheck_backward(backend, layout, grad_layout) -> None:
    z_e, channel_dim = LAYOUTS[layout](4)
    codebook = torch.randn(7, 4, requires_grad=True)
    grad = {
        "as z_e": torch.randn_like(z_e),
        "contiguous": torch.randn(z_e.shape),
        "expanded": torch.ones(()).expand(z_e.shape),
    }[grad_layout]
    scalars = torch.tensor([0.7, 0.3], requires_grad=True).unbind()
    indices = quantize(z_e, codebook, channel_dim=channel_dim).indices
    args = (grad.requires_grad_(), *scalars, z_e.detach().requires_grad_(), codebook, indices, channel_dim)
    torch.library.opcheck(op.quantize_backward, args)


@pytest.mark.parametrize("layout", ["image", "channels_last image", "channels at the end"])
def test_compiles_into_one_graph_for_any_batch(backend, layout) -> None:
    def step(z_e, codebook):
        out = quantize(z_e, codebook, channel_dim=channel_dim, return_statistics=True)
        loss = out.quantized.square().sum() + out.codebook_loss + out.commitment_loss
        return loss, out.indices, out.counts, out.sums

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    z_e, channel_dim = LAYOUTS[layout](4)
    codebook = torch.randn(7, 4)
    for batch in (z_e, z_e.repeat(2, 1, 1, 1), z_e.repeat(5, 1, 1, 1)):
        inputs = [(batch.clone().requires_grad_(), codebook.clone().requires_grad_()) for _ in range(2)]
        outputs = [run(*pair) for run, pair in zip((compiled, step), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        grads = [torch.autograd.grad(out[0], pair) for out, pair in zip(outputs, inputs, strict=True)]
        torch.testing.assert_close(*grads)


def test_inference_mode_makes_no_difference(backend) -> None:
    z_e, codebook = torch.randn(2, 4, 5, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    out = quantize(z_e, codebook, return_statistics=True)
    with torch.inference_mode():
        again = quantize(z_e, codebook, return_statistics=True)
    assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))
    assert not any(value.requires_grad for value in (*again, out.indices, out.counts, out.sums))
