from __future__ import annotations

import copy
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nn.layers import RULES, layer, randn
from vqfast.nn import ResidualVQLayer, VQLayer


def keras(z_e: Tensor, codebook: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The Keras example's ``VectorQuantizer``; channels last, embeddings ``(D, K)``."""
    embeddings = codebook.T
    flattened = z_e.reshape(-1, embeddings.shape[0])
    similarity = flattened @ embeddings
    distances = (flattened**2).sum(1, keepdim=True) + (embeddings**2).sum(0) - 2 * similarity
    indices = distances.argmin(1)
    encodings = F.one_hot(indices, embeddings.shape[1]).to(z_e.dtype)
    quantized = (encodings @ embeddings.T).reshape(z_e.shape)
    commitment = ((quantized.detach() - z_e) ** 2).mean()
    codebook_loss = ((quantized - z_e.detach()) ** 2).mean()
    loss = beta * commitment + codebook_loss
    return z_e + (quantized - z_e).detach(), indices.view(z_e.shape[:-1]), loss


def pytorch(z_e: Tensor, codebook: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the common PyTorch repositories do; channels last."""
    indices = torch.cdist(z_e.reshape(-1, z_e.shape[-1]), codebook).argmin(1).view(z_e.shape[:-1])
    z_q = F.embedding(indices, codebook)
    loss = F.mse_loss(z_q, z_e.detach()) + beta * F.mse_loss(z_q.detach(), z_e)
    return z_e + (z_q - z_e).detach(), indices, loss


def decoder_loss(quantized: Tensor) -> Tensor:
    """Nonlinear, with another slope at every element of the channels-last ``quantized``."""
    weights = torch.linspace(-1, 2, quantized.numel(), dtype=quantized.dtype).view(quantized.shape)
    return (weights * quantized).tanh().square().mean()


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("spatial", [(), (5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("formulation", [keras, pytorch])
def test_outputs_loss_and_gradients_equal_the_known_formulations(formulation, spatial, channel_dim) -> None:
    vq = layer(beta=0.4, channel_dim=channel_dim)
    z_e = randn(7, 4, *spatial) if channel_dim == 1 else randn(7, *spatial, 4)
    out = vq(z_e)
    quantized, indices, loss = formulation(z_e.movedim(channel_dim, -1), vq.codebook, beta=0.4)
    moved = out.quantized.movedim(channel_dim, -1)
    torch.testing.assert_close(moved, quantized, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=1e-10)
    assert torch.equal(out.indices, indices)
    inputs = (z_e, vq.codebook)
    grads = torch.autograd.grad(decoder_loss(moved) + out.loss, inputs)
    expected = torch.autograd.grad(decoder_loss(quantized) + loss, inputs)
    torch.testing.assert_close(grads, expected, rtol=0, atol=1e-10)
    assert all(grad.any() for grad in grads)


def test_codebook_gradient_is_two_over_n_times_the_sum_of_code_minus_vector() -> None:
    vq, z_e = layer(), randn(6, 4, 3)
    out = vq(z_e)
    out.loss.backward()
    vectors = z_e.detach().movedim(1, -1)
    for k, code in enumerate(vq.codebook.detach()):
        expected = 2 / z_e.numel() * (code - vectors[out.indices == k]).sum(0)
        torch.testing.assert_close(vq.codebook.grad[k], expected, rtol=0, atol=1e-12)


def test_ema_loss_is_the_commitment_alone_and_the_codebook_has_no_gradient() -> None:
    vq, z_e = layer(decay=0.9, beta=0.4), randn(6, 4, 3)
    codes = vq.codebook.clone()
    out = vq(z_e)
    difference = z_e.detach() - codes[out.indices].movedim(-1, 1)
    torch.testing.assert_close(out.loss, 0.4 * difference.square().mean(), rtol=0, atol=1e-12)
    out.loss.backward()
    torch.testing.assert_close(z_e.grad, 0.8 / z_e.numel() * difference, rtol=0, atol=1e-12)
    assert list(vq.parameters()) == []


def test_ema_follows_the_papers_recursion_for_50_steps() -> None:
    decay, eps = 0.97, 1e-3
    vq = layer(decay=decay, eps=eps)
    codes = vq.codebook.numpy().copy()
    counts, sums = np.ones(9), codes.copy()
    for _ in range(50):
        z_e = randn(6, 4, 3).detach()
        vq(z_e)
        vectors = z_e.numpy().transpose(0, 2, 1).reshape(-1, 4)
        nearest = np.square(vectors[:, None] - codes).sum(-1).argmin(-1)
        for k in range(9):
            members = vectors[nearest == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(members)
            sums[k] = decay * sums[k] + (1 - decay) * members.sum(0)
        smoothed = (counts + eps) / (counts.sum() + 9 * eps) * counts.sum()
        codes = sums / smoothed[:, None]
        np.testing.assert_allclose(vq.codebook.numpy(), codes, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", [None, 0.99])
def test_used_codes_move_to_the_mean_of_their_vectors_and_unused_ones_stay(decay) -> None:
    """Some notes claim that the argmin keeps the codebook from learning. It doesn't."""
    vq = layer(5, 4, decay=decay)
    start = (
        torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [99, 0, 0, 0], [0, 99, 0, 0]]).double() * 9
    )
    vq.set_codebook(start)
    z_e = start[:3].repeat_interleave(64, 0) + 0.5 + 0.1 * torch.randn(192, 4)
    means = z_e.view(3, 64, 4).mean(1)
    optimizer = torch.optim.SGD(vq.parameters(), lr=0.5) if decay is None else None
    distances = [(start[:3] - means).norm(dim=1)]
    for _ in range(50):
        out = vq(z_e)
        assert torch.equal(out.indices, torch.arange(3).repeat_interleave(64))
        if optimizer:
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        distances.append((vq.codebook[:3].detach() - means).norm(dim=1))
    assert all((after < before).all() for before, after in pairwise(distances))
    assert (distances[-1] < 0.1 * distances[0]).all()
    # exactly by gradients; the smoothing of the moving average's counts pulls a little
    torch.testing.assert_close(vq.codebook[3:].detach(), start[3:], rtol=1e-4 if decay else 0, atol=0)


@RULES
@pytest.mark.parametrize(
    "channel_dim, shape", [(1, (6, 4)), (1, (6, 4, 3, 5)), (-1, (6, 3, 5, 4)), (0, (4, 6))]
)
def test_encode_and_decode_agree_with_forward(channel_dim, shape, decay) -> None:
    vq = layer(channel_dim=channel_dim, decay=decay).eval()
    z_e = randn(*shape)
    quantized, indices, _ = vq(z_e)
    assert torch.equal(vq.encode(z_e), indices)
    assert torch.equal(vq.decode(indices), quantized)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_decode_and_perplexity_take_codes_of_any_integer_dtype(dtype) -> None:
    vq = layer()
    codes = torch.tensor([[0, 8, 1], [1, 1, 0]])
    assert torch.equal(vq.decode(codes.to(dtype)), vq.decode(codes))
    assert torch.equal(vq.perplexity(codes.to(dtype)), vq.perplexity(codes))
    stages = ResidualVQLayer(9, 4, 3)
    assert torch.equal(stages.decode(codes.to(dtype)), stages.decode(codes))


def test_decode_passes_gradients_to_the_codebook() -> None:
    vq = layer()
    vq.decode(torch.tensor([3, 3, 5])).sum().backward()
    assert vq.codebook.grad.sum(1).tolist() == [0, 0, 0, 8, 0, 4, 0, 0, 0]


def test_perplexity_is_the_exponential_of_the_entropy() -> None:
    vq = layer(16)
    indices = torch.randint(0, 4, (5, 7)) ** 2
    p = np.unique(indices, return_counts=True)[1] / 35
    assert vq.perplexity(indices).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert vq.perplexity(torch.full((9,), 3)).item() == 1
    assert vq.perplexity(torch.arange(16).repeat(5)).item() == pytest.approx(16, rel=1e-6)


def test_eval_mode_leaves_the_ema_state_alone_and_training_mode_moves_it() -> None:
    vq, z_e = layer(decay=0.9).eval(), randn(6, 4)
    before = copy.deepcopy(vq.state_dict())
    vq(z_e)
    vq.train().encode(z_e)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    vq(z_e)
    assert not any(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


@RULES
def test_two_passes_of_a_shared_layer_before_one_backward(decay) -> None:
    """EMA moves the codes in place between the passes; each has the gradient of its own codes."""
    vq = layer(decay=decay)
    inputs = [randn(6, 4), randn(5, 4)]
    expected = []
    for z_e in inputs:
        twin = copy.deepcopy(vq)
        if decay and expected:
            twin(inputs[0])
        out = twin(z_e)
        expected += torch.autograd.grad(decoder_loss(out.quantized) + out.loss, z_e)
    outs = [vq(z_e) for z_e in inputs]
    total = sum(decoder_loss(out.quantized) + out.loss for out in outs)
    torch.testing.assert_close(torch.autograd.grad(total, inputs), tuple(expected), rtol=0, atol=1e-12)


def test_backward_of_an_eval_pass_works_after_a_training_pass() -> None:
    vq, z_e = layer(decay=0.9).eval(), randn(6, 4)
    expected = torch.autograd.grad(vq(z_e).loss, z_e)
    loss = vq(z_e).loss
    vq.train()(randn(6, 4))
    torch.testing.assert_close(torch.autograd.grad(loss, z_e), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vector_that_is_not_finite_does_not_spoil_the_ema_codebook(bad) -> None:
    """Under mixed precision such steps happen and are skipped; the codebook has to survive them."""
    vq = layer(decay=0.9)
    z_e = randn(6, 4).detach()
    z_e[2, 1] = bad
    vq(z_e)
    assert all(value.isfinite().all() for value in vq.state_dict().values())


@RULES
@pytest.mark.parametrize(
    "z_e, error, message",
    [
        (torch.zeros(2, 5), ValueError, "z_e has 5 channels at dimension 1 .* embedding_dim = 4"),
        (torch.zeros(2, 3, 4), ValueError, "z_e has 3 channels"),
        (torch.zeros(4), ValueError, "z_e has shape"),
        (torch.zeros(2, 4, dtype=torch.int64), TypeError, "z_e has dtype torch.int64"),
        (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "z_e has dtype torch.complex64"),
        (torch.zeros(0, 4), ValueError, "z_e has shape .* at least one vector"),
        (torch.zeros(2, 4, 0), ValueError, "z_e has shape .* at least one vector"),
        ([[0.0] * 4], TypeError, "z_e is a list"),
    ],
)
def test_bad_vectors_are_named_and_leave_the_state_alone(z_e, error, message, decay) -> None:
    vq = layer(decay=decay)
    before = copy.deepcopy(vq.state_dict())
    for call in (vq, vq.encode):
        with pytest.raises(error, match=message):
            call(z_e)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


@pytest.mark.parametrize(
    "codes, error, message",
    [
        (torch.tensor([0, 9]), ValueError, r"indices has values 0\.\.9; want -1\.\.8"),
        (torch.tensor([-2, 2]), ValueError, r"indices has values -2\.\.2; want -1\.\.8"),
        (torch.tensor([0.0]), TypeError, "indices has dtype torch.float32"),
        (torch.tensor([True]), TypeError, "indices has dtype torch.bool"),
        ([0, 1], TypeError, "indices is a list"),
    ],
)
def test_bad_codes_are_named(codes, error, message) -> None:
    vq = layer()
    for call in (vq.decode, vq.perplexity):
        with pytest.raises(error, match=message):
            call(codes)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_embeddings": 0}, ValueError),
        ({"num_embeddings": 8.0}, TypeError),
        ({"num_embeddings": True}, TypeError),
        ({"embedding_dim": 0}, ValueError),
        ({"embedding_dim": "4"}, TypeError),
        ({"decay": 1.0}, ValueError),
        ({"decay": 0.0}, ValueError),
        ({"beta": -0.1}, ValueError),
        ({"beta": float("nan")}, ValueError),
        ({"eps": 0.0}, ValueError),
    ],
)
def test_bad_options_are_named(options, error) -> None:
    [(name, value)] = options.items()
    with pytest.raises(error, match=f"{name} is {re.escape(repr(value))}"):
        VQLayer(**{"num_embeddings": 8, "embedding_dim": 4, **options})


def test_set_codebook_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"codebook has shape \(9, 5\); want \(9, 4\)"):
        layer().set_codebook(torch.zeros(9, 5))


def restored(vq: VQLayer) -> VQLayer:
    twin = layer(decay=vq.decay)
    twin.load_state_dict(vq.state_dict())
    return twin


COPIES = {
    "state_dict": restored,
    "deepcopy": copy.deepcopy,
    "pickle": lambda vq: pickle.loads(pickle.dumps(vq)),
}


@RULES
@pytest.mark.parametrize("make", COPIES)
def test_copy_continues_as_the_original_and_apart_from_it(make, decay) -> None:
    vq = layer(decay=decay)
    vq(randn(6, 4)).loss.backward()
    twin = COPIES[make](vq)
    batch = randn(7, 4)
    for one in (vq, twin):
        one(batch)
    assert vq.state_dict().keys() == twin.state_dict().keys()
    for name, value in vq.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
    with torch.no_grad():
        twin.codebook.add_(1)
    assert not torch.equal(vq.codebook, twin.codebook)


@RULES
def test_to_float64_converts_all_state(decay) -> None:
    vq = VQLayer(9, 4, decay=decay, kmeans_init=False).to(torch.float64)
    assert {value.dtype for value in vq.state_dict().values()} == {torch.float64}
    out = vq(randn(3, 4))
    assert (out.quantized.dtype, out.loss.dtype) == (torch.float64, torch.float64)


@RULES
def test_builds_and_runs_on_meta_and_starts_anew_after_to_empty(decay) -> None:
    with torch.device("meta"):
        vq = VQLayer(9, 4, decay=decay)
        out = vq(torch.zeros(2, 4, 5))
    assert (out.quantized.shape, out.indices.shape, out.loss.shape) == ((2, 4, 5), (2, 5), ())
    vq.to_empty(device="cpu").reset_parameters()
    assert 0 < vq.codebook.abs().max() <= 1 / 9
    if decay:
        assert torch.equal(vq.ema_sums, vq.codebook)
        assert vq.ema_counts.tolist() == [1] * 9


@RULES
def test_bfloat16_vectors_with_a_float32_codebook(decay) -> None:
    vq = VQLayer(9, 4, decay=decay)
    vq.set_codebook(torch.randn(9, 4))
    codes = vq.codebook.detach().clone()
    z_e = torch.randn(6, 4, 5).bfloat16().requires_grad_()
    out = vq(z_e)
    wide = z_e.detach().double().movedim(1, -1)
    expected = (wide[..., None, :] - codes.double()).square().sum(-1).argmin(-1)
    assert torch.equal(out.indices, expected)
    assert torch.equal(out.quantized, codes[expected].movedim(-1, 1).bfloat16())
    loss = (1.25 if decay is None else 0.25) * (wide - codes[expected]).square().mean()
    torch.testing.assert_close(out.loss, loss.float())
    (out.quantized.float().sum() + out.loss).backward()
    assert z_e.grad.dtype == torch.bfloat16
    assert vq.codebook.dtype == torch.float32


@RULES
def test_layout_of_the_vectors_is_kept(decay) -> None:
    z_e = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    assert VQLayer(9, 4, decay=decay)(z_e).quantized.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@RULES
@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_exported_layer_equal_the_plain_one(decay, training) -> None:
    torch.compiler.reset()
    vq = layer(decay=decay).train(training)
    twins = [copy.deepcopy(vq), copy.deepcopy(vq)]
    example = randn(2, 4, 5).detach()
    compiled = torch.compile(twins[0], fullgraph=True, backend="aot_eager")
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(twins[1], (example,), dynamic_shapes=(batch,)).module()
    for z_e in (example, randn(3, 4, 5).detach()):
        expected = vq(z_e)
        torch.testing.assert_close(tuple(compiled(z_e)), tuple(expected))
        torch.testing.assert_close(tuple(exported(z_e)), tuple(expected))
    torch.testing.assert_close(compiled.codebook, vq.codebook)
