"""What the options of ``VQLayer`` compute: metric, heads, projections, masks, gradients."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nn.layers import ALL, RULES, STILL, assert_states_close, layer, randn, state
from vqfast.nn import VQLayer
from vqfast.nn.vq import pass_gradient

# cosine, heads, projections


@RULES
def test_cosine_layer_quantises_directions(decay) -> None:
    vq, z_e = layer(metric="cosine", decay=decay), randn(6, 4, 5)
    codes = F.normalize(vq.codebook.detach(), dim=-1)
    out, parts = vq(z_e, return_parts=True)
    unit = F.normalize(z_e.detach(), dim=1)
    assert torch.equal(out.indices, torch.einsum("bdt,kd->btk", unit, codes).argmax(-1))
    torch.testing.assert_close(out.quantized.detach(), codes[out.indices].movedim(-1, 1))
    torch.testing.assert_close(parts.commitment, (unit - out.quantized).detach().square().mean())
    assert torch.equal(vq(3 * z_e).indices, vq(z_e).indices)
    out.loss.backward()
    radial = (z_e.grad * z_e.detach()).sum(1)
    torch.testing.assert_close(radial, torch.zeros_like(radial))  # the length has no gradient
    if decay:
        torch.testing.assert_close(vq.codebook.norm(dim=-1), torch.ones(9).double())


def test_cosine_layer_in_bfloat16_compares_in_float32() -> None:
    vq = VQLayer(200, 8, metric="cosine").bfloat16()
    vq.set_codebook(torch.randn(200, 8))
    z_e = torch.randn(500, 8).bfloat16()
    unit = [F.normalize(value.detach().double(), dim=-1) for value in (z_e, vq.codebook)]
    out = vq(z_e)
    assert torch.equal(out.indices, (unit[0] @ unit[1].T).argmax(-1))
    assert out.quantized.dtype == torch.bfloat16


def test_cosine_layer_survives_zero_vectors() -> None:
    vq, z_e = layer(metric="cosine"), torch.zeros(3, 4, requires_grad=True)
    out = vq(z_e)
    (out.quantized.sum() + out.loss).backward()
    assert z_e.grad.abs().max() < 10


@RULES
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_shared_heads_are_so_many_more_vectors(metric, decay) -> None:
    options = {"decay": decay, "metric": metric, "beta": 0.4}
    vq, plain = layer(8, 12, heads=3, **options), layer(8, 4, **options)
    vq.set_codebook(plain.codebook.detach())
    z_e = randn(5, 12, 7)
    out = vq(z_e)
    expected = plain(z_e.movedim(1, -1).reshape(-1, 4))
    assert out.indices.shape == (5, 7, 3)
    assert torch.equal(out.indices.flatten(), expected.indices)
    torch.testing.assert_close(out.quantized.movedim(1, -1).reshape(-1, 4), expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)
    assert_states_close(plain, vq)


@RULES
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_separate_heads_are_layers_side_by_side(metric, decay) -> None:
    options = {"decay": decay, "metric": metric, "beta": 0.4}
    vq = layer(8, 12, heads=3, separate_codebooks=True, **options)
    alone = [layer(8, 4, **options) for _ in range(3)]
    for head, codes in zip(alone, vq.codebook.detach(), strict=True):
        head.set_codebook(codes)
    z_e = randn(5, 12, 7)
    out = vq(z_e)
    expected = [head(part) for head, part in zip(alone, z_e.split(4, 1), strict=True)]
    assert torch.equal(out.indices, torch.stack([each.indices for each in expected], -1))
    torch.testing.assert_close(out.quantized, torch.cat([each.quantized for each in expected], 1))
    torch.testing.assert_close(out.loss, sum(each.loss for each in expected) / 3)
    for name, value in vq.state_dict().items():
        stacked = torch.stack([head.state_dict()[name] for head in alone])
        torch.testing.assert_close(value, stacked, rtol=0, atol=1e-12)


def test_projections_stand_around_a_plain_layer() -> None:
    vq, plain = layer(8, 12, codebook_dim=3, channel_dim=-1), layer(8, 3, channel_dim=-1)
    vq.set_codebook(plain.codebook.detach())
    z_e = randn(5, 7, 12)
    out, expected = vq(z_e), plain(vq.projection.project_in(z_e))
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.quantized, vq.projection.project_out(expected.quantized))
    (out.quantized.square().sum() + out.loss).backward()
    assert all(parameter.grad.any() for parameter in vq.parameters())


@ALL
@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("spatial", [(), (5,), (3, 5)])
def test_decode_of_encode_is_forward_for_every_option(options, channel_dim, spatial) -> None:
    options = {**options, "heads": options.get("heads", 1)}
    vq = layer(9, 6, channel_dim=channel_dim, **options).eval()
    z_e = randn(7, 6, *spatial) if channel_dim == 1 else randn(7, *spatial, 6)
    mask = torch.rand(7, *spatial) < 0.7
    for shown in (None, mask):
        out = vq(z_e, shown)
        assert out.quantized.shape == z_e.shape
        assert torch.equal(vq.encode(z_e, shown), out.indices)
        torch.testing.assert_close(vq.decode(out.indices, shown), out.quantized)


# masks


def unmasked(z_e: Tensor, mask: Tensor) -> Tensor:
    return z_e.movedim(1, -1)[mask]


@ALL
@pytest.mark.parametrize("padding", [0.0, 1e6, torch.nan])
def test_masked_layer_learns_what_the_unmasked_vectors_alone_would_teach(options, padding) -> None:
    vq = layer(9, 6, **options)
    alone, mask = copy.deepcopy(vq), torch.rand(8, 11) < 0.6
    for step in range(3):
        z_e = randn(8, 6, 11).detach()
        z_e = torch.where(mask.unsqueeze(1), z_e, padding).requires_grad_()
        torch.manual_seed(step)
        out, parts = vq(z_e, mask, return_parts=True)
        torch.manual_seed(step)
        shown = unmasked(z_e, mask).detach().requires_grad_()
        expected, expected_parts = alone(shown, return_parts=True)
        torch.testing.assert_close(out.loss, expected.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(parts, expected_parts, rtol=1e-12, atol=0)
        assert torch.equal(out.indices[mask], expected.indices)
        assert (out.indices[~mask] == -1).all()
        torch.testing.assert_close(unmasked(out.quantized, mask), expected.quantized)
        assert not unmasked(out.quantized, ~mask).any()
        (out.quantized.sin().sum() + out.loss).backward()
        (expected.quantized.sin().sum() + expected.loss).backward()
        torch.testing.assert_close(unmasked(z_e.grad, mask), shown.grad)
        assert not unmasked(z_e.grad, ~mask).any()
        for mine, its in zip(vq.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad)
        assert_states_close(alone, vq)


def test_mask_counts_in_the_kmeans_start() -> None:
    vq = VQLayer(5, 4, kmeans_init=True).double()
    z_e, mask = randn(4, 4, 10), torch.zeros(4, 10, dtype=torch.bool)
    mask[1, :5] = True
    assert vq(z_e, mask).loss.item() == pytest.approx(0, abs=1e-12)  # five vectors, five codes


@RULES
def test_batch_that_is_masked_whole_has_no_loss_and_moves_nothing(decay) -> None:
    vq, z_e = layer(decay=decay, revive_below=4.0), randn(4, 4, 10)
    before = state(vq)
    out = vq(z_e, torch.zeros(4, 10, dtype=torch.bool))
    out.loss.backward()
    assert out.loss == 0
    assert not z_e.grad.any()
    assert all(torch.allclose(value, before[name]) for name, value in vq.state_dict().items())


def test_bfloat16_padding_has_no_influence() -> None:
    vq, mask = VQLayer(9, 4), torch.tensor([[True, False]] * 6)
    vq.set_codebook(torch.randn(9, 4))
    z_e = torch.randn(6, 4, 2).bfloat16()
    out = vq(z_e, mask)
    expected = vq(z_e[..., :1])
    assert out.quantized.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, expected.loss)
    grads = [torch.autograd.grad(one.loss, vq.codebook)[0] for one in (out, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (torch.ones(2, 4), TypeError, "mask has dtype torch.float32"),
        ([True], TypeError, "mask is a list"),
        (torch.ones(2, 4, dtype=torch.bool), ValueError, "mask has shape (2, 4); want (2, 5)"),
    ],
)
def test_bad_masks_are_named(mask, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        layer()(randn(2, 4, 5), mask)


# gradients


@pytest.mark.parametrize("dim", [0, -1])
def test_rotation_is_the_papers_matrix(dim) -> None:
    z, z_q = randn(5, 3), randn(5, 3).detach()
    grad = torch.randn(5, 3).double()
    out = pass_gradient(z.movedim(-1, dim), z_q.movedim(-1, dim), "rotation", dim)
    assert torch.equal(out, z_q.movedim(-1, dim))
    out.backward(grad.movedim(-1, dim))
    for row in range(5):
        e, q = F.normalize(z[row].detach(), dim=0), F.normalize(z_q[row], dim=0)
        r = F.normalize(e + q, dim=0)
        rotation = torch.eye(3) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        scale = z_q[row].norm() / z[row].detach().norm()
        torch.testing.assert_close(rotation @ e, q)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double())
        torch.testing.assert_close(scale * rotation @ z[row].detach(), z_q[row])
        torch.testing.assert_close(z.grad[row], scale * rotation.T @ grad[row])


def test_rotation_keeps_the_angle_between_vector_and_gradient() -> None:
    """What the trick is for (section 4.2): straight-through keeps the gradient, not its angle."""
    vq, z_e, grad = layer(gradient="rotation"), randn(50, 4), torch.randn(50, 4).double()
    quantized = vq(z_e).quantized
    quantized.backward(grad)
    before = torch.cosine_similarity(quantized.detach(), grad)
    torch.testing.assert_close(torch.cosine_similarity(z_e.detach(), z_e.grad), before)


def test_rotation_of_a_zero_and_of_an_opposite_vector_is_finite() -> None:
    z = torch.tensor([[0.0, 0], [1, 2], [3, 0]], dtype=torch.float64, requires_grad=True)
    z_q = torch.tensor([[1.0, 1], [-2, -4], [0, 0]], dtype=torch.float64)
    pass_gradient(z, z_q, "rotation", -1).sum().backward()
    assert z.grad[0].tolist() == [1, 1]
    torch.testing.assert_close(z.grad[1].norm(), torch.tensor(2 * 2**0.5).double())
    assert z.grad[2].tolist() == [0, 0]


@RULES
@pytest.mark.parametrize("frozen", [{"learnable": False}, {}])
def test_frozen_codes_stay_and_only_the_commitment_is_left(decay, frozen) -> None:
    vq, z_e = layer(decay=decay, beta=0.4, **frozen), randn(6, 4)
    if not frozen:
        vq.freeze()
    before = state(vq)
    out, parts = vq(z_e, return_parts=True)
    torch.testing.assert_close(out.loss, 0.4 * parts.commitment)
    (out.quantized.sum() + out.loss).backward()
    assert z_e.grad.any()
    assert not any(parameter.requires_grad for parameter in vq.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    vq.freeze(False)
    out = vq(z_e)
    assert (vq.codebook.requires_grad) == (decay is None)
    assert decay is None or not torch.equal(vq.codebook, before["codebook"])


@ALL
def test_parts_add_up_to_the_loss(options) -> None:
    vq, z_e = layer(9, 6, beta=0.4, **options), randn(6, 6, 5)
    out, (codebook, commitment) = vq(z_e, return_parts=True)
    codebook = 0 if vq.decay else codebook
    torch.testing.assert_close(out.loss, codebook + 0.4 * commitment)


# vector-quantize-pytorch, where it is right


@pytest.mark.parametrize(
    "options, peer_options",
    [
        ({}, {}),
        ({"metric": "cosine"}, {"use_cosine_sim": True}),
        ({"heads": 2}, {"heads": 2, "codebook_dim": 3}),
        (
            {"heads": 2, "separate_codebooks": True},
            {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
        ),
        ({"gradient": "rotation"}, {"rotation_trick": True}),
        ({"codebook_dim": 3}, {"codebook_dim": 3}),
    ],
)
def test_equals_vector_quantize_pytorch(options, peer_options) -> None:
    peers = pytest.importorskip("vector_quantize_pytorch")
    vq = VQLayer(9, 6, decay=0.8, beta=1.0, channel_dim=-1, **STILL, **options)
    peer = peers.VectorQuantize(6, 9, **{"rotation_trick": False, "decay": 0.8, **peer_options})
    codes = torch.randn(vq.codebook.shape)
    codes = F.normalize(codes, dim=-1) if vq.metric == "cosine" else codes
    vq.set_codebook(codes)
    peer._codebook.embed.data.copy_(codes.view(peer._codebook.embed.shape))
    peer._codebook.embed_avg.data.copy_(peer._codebook.embed)
    peer._codebook.cluster_size.data.fill_(1)
    if vq.projection.project_in is not None:
        vq.projection.project_in.load_state_dict(peer.project_in.state_dict())
        vq.projection.project_out.load_state_dict(peer.project_out.state_dict())
    inputs = [torch.randn(4, 7, 6, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    # with a mask the peer compares code vectors with vectors before projection, split and normalisation
    masked = set(options) <= {"gradient"}
    mask = torch.arange(7) < torch.tensor([[7], [3], [5], [1]]) if masked else None
    out = vq(inputs[0], mask)
    quantized, indices, loss = peer(inputs[1], mask=mask)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(out.loss, loss.squeeze())
    pairs = zip((out.quantized, quantized), inputs, strict=True)
    torch.testing.assert_close(*(torch.autograd.grad(q.sin().sum(), z)[0] for q, z in pairs))
    torch.testing.assert_close(
        vq.codebook, peer._codebook.embed.view(vq.codebook.shape), rtol=1e-3, atol=1e-4
    )
