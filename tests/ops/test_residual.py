from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vqfast.functional import Quantized, residual_quantize
from vqfast.ops.residual import op

OP = "residual"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {  # (vectors of D channels, where the channels stand)
    "rows": lambda d: (torch.randn(17, d), 1),
    "audio": lambda d: (torch.randn(3, d, 45), 1),
    "channels_last image": lambda d: (torch.randn(2, d, 3, 5).to(memory_format=torch.channels_last), 1),
    "channels at the end": lambda d: (torch.randn(2, 9, 5, d), -1),
    "channels in front": lambda d: (torch.randn(d, 17), 0),
    "transposed": lambda d: (torch.randn(2, d, 3, 5).transpose(2, 3), 1),
    "every other channel": lambda d: (torch.randn(2, 2 * d, 5)[:, ::2], 1),
    "expanded over space": lambda d: (torch.randn(2, d, 1, 1).expand(2, d, 3, 5), 1),
}
STAGES = pytest.mark.parametrize("shared", [False, True])


def books(q: int, k: int, d: int, shared: bool = False) -> Tensor:
    """Codes that get smaller from stage to stage, or one codebook for all."""
    if shared:
        return torch.randn(1, k, d).expand(q, k, d)
    return torch.randn(q, k, d) / torch.arange(1.0, q + 1).view(q, 1, 1)


def wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Rounding of sums in float32 or wider, and of the result in ``dtype``."""
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    return {"rtol": rtol, "atol": rtol}


def check_outputs(out: Quantized, z_e: Tensor, codebooks: Tensor, channel_dim: int, assert_nearest) -> None:
    """Every output against its definition, given the indices; these against all distances in float64."""
    dtype, (stages, k, d) = wide(z_e, codebooks), codebooks.shape
    rows = z_e.movedim(channel_dim, -1)
    assert out.indices.shape == (*rows.shape[:-1], stages)
    assert out.quantized.stride() == torch.empty_like(z_e).stride()
    residual, total = rows.reshape(-1, d).to(dtype), 0
    for q, codebook in enumerate(codebooks.to(dtype)):
        index = out.indices[..., q].flatten()
        assert_nearest(index, residual, codebook)
        members = [residual.double()[index == code] for code in range(k)]
        assert out.counts[q].tolist() == [len(vectors) for vectors in members]
        sums = torch.stack([vectors.sum(0) for vectors in members])
        torch.testing.assert_close(out.sums[q], sums.to(dtype), **tolerance(dtype))
        residual, total = residual - codebook[index], total + codebook[index]
        for loss in (out.codebook_loss[q], out.commitment_loss[q]):
            torch.testing.assert_close(loss, residual.double().square().mean().to(dtype), **tolerance(dtype))
    quantized = out.quantized.movedim(channel_dim, -1)
    assert torch.equal(quantized.reshape(-1, d), total.to(z_e.dtype))


@STAGES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_in_any_layout(backend, assert_nearest, layout, dtype, shared) -> None:
    z_e, channel_dim = LAYOUTS[layout](6)
    z_e, codebooks = z_e.to(dtype), books(3, 11, 6, shared).to(dtype)
    out = residual_quantize(z_e, codebooks, channel_dim=channel_dim, return_statistics=True)
    check_outputs(out, z_e, codebooks, channel_dim, assert_nearest)


@pytest.mark.parametrize(
    "n, q, k, d",
    [(1, 1, 1, 1), (3, 2, 17, 1), (17, 5, 3, 200), (1000, 3, 3, 17), (700, 2, 300, 65), (17, 1, 1000, 3)],
)
def test_outputs_at_odd_sizes(backend, assert_nearest, n, q, k, d) -> None:
    z_e, codebooks = torch.randn(3, d, n), books(q, k, d)
    check_outputs(
        residual_quantize(z_e, codebooks, return_statistics=True), z_e, codebooks, 1, assert_nearest
    )


@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_outputs_of_mixed_dtypes(backend, assert_nearest, types) -> None:
    z_e, codebooks = torch.randn(2, 5, 9).to(types[0]), books(3, 7, 5).to(types[1])
    check_outputs(
        residual_quantize(z_e, codebooks, return_statistics=True), z_e, codebooks, 1, assert_nearest
    )


@pytest.mark.parametrize("spread, offset", [(1, 0), (1e-3, 0), (1, 100), (1, 1000)])
def test_outputs_of_codes_near_one_another_or_far_from_zero(backend, assert_nearest, spread, offset) -> None:
    """The first stage takes the offset away; a second one with it sees vectors far from all codes."""
    near = torch.randn(3, 1, 64) * (spread < 1)
    codebooks = near + spread * torch.randn(3, 128, 64) + offset * torch.tensor([1, 1, 0]).view(3, 1, 1)
    z_e = torch.randn(2, 64, 300) + offset
    check_outputs(
        residual_quantize(z_e, codebooks, return_statistics=True), z_e, codebooks, 1, assert_nearest
    )


@given(data=st.data())
def test_small_integers_tie_exactly(backend, assert_nearest, data) -> None:
    """Integers have no rounding in any dtype, and many ties: the lowest index wins in every stage."""
    n, q, k, d, t = (data.draw(st.integers(low, 6)) for low in (0, 1, 1, 1, 0))
    dtype = data.draw(st.sampled_from(DTYPES))
    z_e, codebooks = torch.randint(-4, 5, (n, d, t)).to(dtype), torch.randint(-2, 3, (q, k, d)).to(dtype)
    indices, residual = residual_quantize(z_e, codebooks).indices, z_e.movedim(1, -1)
    for stage, codebook in enumerate(codebooks):
        assert_nearest(indices[..., stage], residual, codebook, exact=True)
        residual = residual - codebook[indices[..., stage]]


@pytest.mark.parametrize("d", [3, 130])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vector_that_is_not_finite_quantises_to_nan_with_indices_0_and_nan_losses(backend, bad, d) -> None:
    codebooks = books(3, 8, d)
    z_e = torch.randn(50, d, 2)
    clean = residual_quantize(z_e, codebooks, return_statistics=True)
    z_e[4, 1, 0] = bad
    out = residual_quantize(z_e, codebooks, return_statistics=True)
    indices, quantized = clean.indices.clone(), clean.quantized.clone()
    indices[4, 0], quantized[4, :, 0] = 0, torch.nan
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized, rtol=0, atol=0, equal_nan=True)
    assert out.codebook_loss.isnan().all()
    assert out.commitment_loss.isnan().all()
    poisoned = torch.zeros(3, 8, d, dtype=torch.bool)
    poisoned[0, 0, 1] = poisoned[1:, 0] = True  # what is left over of such a vector is NaN throughout
    assert torch.equal(out.sums.isfinite(), ~poisoned)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, at infinities
def test_residual_that_overflows_is_like_a_vector_that_is_not_finite(backend) -> None:
    """What is left of 3e38 once -3e38 is taken away."""
    z_e, codebooks = torch.full((1, 2), 3e38), torch.full((3, 1, 2), -3e38)
    out = residual_quantize(z_e, codebooks)
    assert out.quantized.isnan().all()
    assert out.indices.tolist() == [[0, 0, 0]]
    assert out.codebook_loss.isfinite().tolist() == [False] * 3
    assert out.codebook_loss.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
def test_no_vectors_give_empty_outputs_nan_losses_and_zero_gradients(backend, shape) -> None:
    z_e, codebooks = torch.zeros(shape, requires_grad=True), books(2, 3, 4).requires_grad_()
    out = residual_quantize(z_e, codebooks, return_statistics=True)
    assert out.quantized.shape == shape
    assert out.indices.shape == (shape[0], *shape[2:], 2)
    assert out.codebook_loss.isnan().all()
    assert out.counts.tolist() == [[0, 0, 0]] * 2
    assert not out.sums.any()
    (out.quantized.sum() + out.codebook_loss.sum() + out.commitment_loss.sum()).backward()
    assert z_e.grad.shape == shape
    assert not codebooks.grad.any()


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_straight_through_and_the_closed_forms(backend, layout, dtype, wanted) -> None:
    z_e, channel_dim = LAYOUTS[layout](70)
    z_e = z_e.to(dtype).requires_grad_(wanted[0])
    codebooks = books(3, 11, 70).to(dtype).requires_grad_(wanted[1])
    out = residual_quantize(z_e, codebooks, channel_dim=channel_dim)
    weights = torch.randn(z_e.shape).to(dtype)
    to_codes, to_vectors = torch.tensor([0.7, 0.0, 1.1]).double(), torch.tensor([0.3, 1.3, 0.0]).double()
    losses = (to_codes * out.codebook_loss).sum() + (to_vectors * out.commitment_loss).sum()
    ((weights * out.quantized).sum() + losses).backward()

    residual = z_e.detach().double().movedim(channel_dim, -1)
    want, slope = weights.double().movedim(channel_dim, -1), 2 / z_e.numel()
    for q, codebook in enumerate(codebooks.detach().double()):
        index = out.indices[..., q]
        residual = residual - codebook[index]
        want = want + to_vectors[q] * slope * residual
        if wanted[1]:
            pulls = torch.stack([-residual[index == k].sum(0) for k in range(11)])
            grad = (to_codes[q] * slope * pulls).to(dtype)
            torch.testing.assert_close(codebooks.grad[q], grad, **tolerance(dtype))
    if wanted[0]:
        want = want.movedim(-1, channel_dim).to(dtype)
        torch.testing.assert_close(z_e.grad, want, **tolerance(dtype))


def test_losses_pass_gradcheck_and_gradgradcheck(backend) -> None:
    """By what they aren't constant in; second derivatives of all: ``test_transforms.py``."""
    z_e = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    codebooks = books(3, 5, 3).double().requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        check(lambda z: residual_quantize(z, codebooks.detach()).commitment_loss, z_e)
    torch.autograd.gradgradcheck(lambda z: residual_quantize(z, codebooks.detach()).quantized, z_e)
    for q in range(3):  # the codes before it are constants to a stage

        def loss(own, q=q):
            rest = codebooks.detach().unbind()
            return residual_quantize(z_e.detach(), torch.stack([*rest[:q], own, *rest[q + 1 :]]))[2][q]

        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            check(loss, codebooks[q].detach().requires_grad_())


@pytest.mark.slow
@STAGES
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("layout", ["rows", "channels_last image", "transposed", "expanded over space"])
def test_opcheck(backend, layout, statistics, shared) -> None:
    z_e, channel_dim = LAYOUTS[layout](4)
    codebooks = books(3, 7, 4, shared).requires_grad_()
    args = (z_e.detach().requires_grad_(), codebooks, channel_dim, statistics)
    torch.library.opcheck(op.quantize, args)


@pytest.mark.slow
@pytest.mark.parametrize("grad_layout", ["as z_e", "contiguous", "expanded"])
@pytest.mark.parametrize("layout", ["rows", "audio", "channels_last image", "transposed"])
def test_opcheck_backward(backend, layout, grad_layout) -> None:
    z_e, channel_dim = LAYOUTS[layout](4)
    codebooks = books(3, 7, 4).requires_grad_()
    grad = {
        "as z_e": torch.randn_like(z_e),
        "contiguous": torch.randn(z_e.shape),
        "expanded": torch.ones(()).expand(z_e.shape),
    }[grad_layout]
    losses = torch.rand(2, 3, requires_grad=True).unbind()
    indices = residual_quantize(z_e, codebooks, channel_dim=channel_dim).indices
    args = (grad.requires_grad_(), *losses, z_e.detach().requires_grad_(), codebooks, indices, channel_dim)
    torch.library.opcheck(op.quantize_backward, args)


@pytest.mark.parametrize("layout", ["audio", "channels at the end"])
def test_compiles_into_one_graph_for_any_batch(backend, layout) -> None:
    def step(z_e, codebooks):
        out = residual_quantize(z_e, codebooks, channel_dim=channel_dim, return_statistics=True)
        loss = out.quantized.square().sum() + (out.codebook_loss + out.commitment_loss).sum()
        return loss, out.indices, out.counts, out.sums

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    z_e, channel_dim = LAYOUTS[layout](4)
    codebooks = books(3, 7, 4)
    for batch in (z_e, z_e.repeat_interleave(2, 0), z_e.repeat_interleave(5, 0)):
        inputs = [(batch.clone().requires_grad_(), codebooks.clone().requires_grad_()) for _ in range(2)]
        outputs = [run(*pair) for run, pair in zip((compiled, step), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        grads = [torch.autograd.grad(out[0], pair) for out, pair in zip(outputs, inputs, strict=True)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("k", [5, 40, 1000, 2000])
def test_the_number_of_threads_changes_no_sum(backend, assert_nearest, k) -> None:
    """Blocks of vectors end within a sample; parts have sums of their own where codes are few."""

    def step(threads: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(threads)
        inputs = z_e.clone().requires_grad_(), codebooks.clone().requires_grad_()
        out = residual_quantize(*inputs, return_statistics=True)
        grads = torch.autograd.grad(out.codebook_loss.sum() + out.commitment_loss.sum(), inputs)
        return out.indices, out.quantized, out.counts, out.sums, *grads

    z_e, codebooks = torch.randn(5, 9, 700), books(3, k, 9)
    try:
        once, *others = map(step, (1, 2, 3, 4))
    finally:
        torch.set_num_threads(1)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, once, strict=True))
    check_outputs(
        residual_quantize(z_e, codebooks, return_statistics=True), z_e, codebooks, 1, assert_nearest
    )


@pytest.mark.parametrize(
    "z_e, codebooks, error, message",
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), ValueError, "codebooks has shape .4, 3.; want .Q, K, D."),
        (torch.zeros(2, 3), torch.zeros(0, 4, 3), ValueError, "codebooks has shape .0, 4, 3."),
        (torch.zeros(2, 3), torch.zeros(2, 4, 3).long(), TypeError, "codebooks has dtype torch.int64"),
        (torch.zeros(2, 4), torch.zeros(2, 4, 3), ValueError, "z_e has 4 channels .* want embedding_dim = 3"),
        ([0.0], torch.zeros(2, 4, 3), TypeError, "z_e is a list"),
    ],
)
def test_bad_input_is_named(z_e, codebooks, error, message) -> None:
    with pytest.raises(error, match=message):
        residual_quantize(z_e, codebooks)
