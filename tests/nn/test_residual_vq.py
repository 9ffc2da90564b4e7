from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.nn.layers import assert_copies_continue, randn
from vqfast.nn import ResidualVQLayer

OPTIONS = {
    "plain": {},
    "ema": {"decay": 0.9},
    "shared": {"shared_codebook": True},
    "shared ema": {"shared_codebook": True, "decay": 0.9, "revive_below": 0.5},
    "revival": {"revive_below": 0.5},
    "cosine": {"metric": "cosine", "decay": 0.9},
    "projected": {"codebook_dim": 3, "decay": 0.9},
    "rotation": {"gradient": "rotation", "codebook_dim": 3},
}
ALL = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def layer(num_embeddings: int = 9, embedding_dim: int = 6, num_quantizers: int = 4, **options):
    """In float64, with codes that get smaller from stage to stage."""
    rvq = ResidualVQLayer(num_embeddings, embedding_dim, num_quantizers, **options).double()
    for q, stage in enumerate(rvq.stages):
        stage.set_codebook(torch.randn(stage.codebook.shape) / 2**q)
    return rvq


def by_hand(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """SoundStream's algorithm 1, for channels last; the squared errors of each stage too."""
    residual, indices, errors = z, [], []
    for codes in codebooks:
        nearest = (residual.unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
        errors.append((residual - codes[nearest]).square().mean())
        residual = residual - codes[nearest]
        indices.append(nearest)
    return z - residual, torch.stack(indices, -1), errors


@pytest.mark.parametrize("shared_codebook", [False, True])
@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_each_stage_codes_the_residual_of_the_stages_before(channel_dim, decay, shared_codebook) -> None:
    rvq = layer(channel_dim=channel_dim, decay=decay, shared_codebook=shared_codebook, beta=0.4)
    codebooks = rvq.codebooks.detach()
    z_e = randn(5, 6, 7) if channel_dim == 1 else randn(5, 7, 6)
    out, parts = rvq(z_e, return_parts=True)
    quantized, indices, errors = by_hand(z_e.detach().movedim(channel_dim, -1), codebooks)
    torch.testing.assert_close(out.quantized.movedim(channel_dim, -1).detach(), quantized)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(parts.codebook, torch.stack(errors))
    torch.testing.assert_close(parts.commitment, torch.stack(errors))
    torch.testing.assert_close(out.loss, (1.4 if decay is None else 0.4) * sum(errors))
    assert len(list(rvq.parameters())) == (0 if decay else 1 if shared_codebook else 4)


def test_gradient_of_the_sum_is_passed_once_and_every_stage_commits() -> None:
    rvq, z_e = layer(beta=0.4), randn(30, 6)
    out = rvq(z_e)
    (grad,) = torch.autograd.grad(out.quantized.sin().sum(), z_e, retain_graph=True)
    torch.testing.assert_close(grad, out.quantized.detach().cos())
    out.loss.backward()
    residual, expected = z_e.detach(), torch.zeros_like(z_e)
    for q, stage in enumerate(rvq.stages):
        codes, nearest = stage.codebook.detach(), out.indices[:, q]
        residual = residual - codes[nearest]
        expected = expected + 0.4 * 2 / z_e.numel() * residual
        pulled = torch.zeros_like(codes).index_add(0, nearest, -2 / z_e.numel() * residual)
        torch.testing.assert_close(stage.codebook.grad, pulled)
    torch.testing.assert_close(z_e.grad, expected)


def test_separate_stages_learn_as_layers_in_a_row_would() -> None:
    rvq = layer(decay=0.9, revive_below=0.5)
    stages = copy.deepcopy(rvq.stages)
    z_e = randn(40, 6).detach()
    torch.manual_seed(1)
    rvq(z_e)
    torch.manual_seed(1)
    residual = z_e
    for stage in stages:
        residual = residual - stage(residual).quantized
    for stage, plain in zip(rvq.stages, stages, strict=True):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(stage.state_dict()[name], value)


def test_shared_codebook_takes_one_average_step_over_all_stages() -> None:
    rvq = layer(decay=0.9, shared_codebook=True, eps=1e-12)
    codes, z_e = rvq.codebooks[0].clone(), randn(40, 6).detach()
    indices, residual = rvq(z_e).indices, z_e
    counts, sums = torch.ones(9).double() * 0.9, codes * 0.9
    for q in range(4):
        counts.index_add_(0, indices[:, q], torch.full((40,), 0.1).double())
        sums.index_add_(0, indices[:, q], 0.1 * residual)
        residual = residual - codes[indices[:, q]]
    torch.testing.assert_close(rvq.codebooks, (sums / counts.unsqueeze(1)).expand(4, 9, 6))


@ALL
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_decode_of_encode_is_forward(options, channel_dim) -> None:
    rvq = layer(channel_dim=channel_dim, **options).eval()
    z_e = randn(5, 6, 7) if channel_dim == 1 else randn(5, 7, 6)
    for mask in (None, torch.rand(5, 7) < 0.6):
        out = rvq(z_e, mask)
        assert out.quantized.shape == z_e.shape
        assert torch.equal(rvq.encode(z_e, mask), out.indices)
        torch.testing.assert_close(rvq.decode(out.indices, mask), out.quantized)


def test_decode_from_fewer_stages_or_with_some_left_out() -> None:
    rvq, codes = layer(channel_dim=-1), torch.randint(9, (5, 7, 4))
    codes[1, 2, 1] = codes[3, :, 2:] = -1
    expected = torch.zeros(4, 5, 7, 6).double()
    for q, codebook in enumerate(rvq.codebooks.detach()):
        used = codes[..., q] >= 0
        expected[q][used] = codebook[codes[..., q][used]]
    for q in range(1, 5):
        torch.testing.assert_close(rvq.decode(codes[..., :q]).detach(), expected[:q].sum(0))


def test_more_stages_leave_smaller_residuals_after_kmeans() -> None:
    rvq = ResidualVQLayer(16, 6, 4, kmeans_init=True)
    _, parts = rvq(torch.randn(500, 6), return_parts=True)
    assert (parts.commitment.diff() < 0).all()
    assert all(stage.initialised for stage in rvq.stages)


@ALL
def test_masked_vectors_have_no_influence(options) -> None:
    rvq = layer(**options)
    alone, mask = copy.deepcopy(rvq), torch.rand(8, 11) < 0.6
    for step in range(2):
        z_e = torch.where(mask.unsqueeze(1), randn(8, 6, 11).detach(), torch.nan).requires_grad_()
        visible = z_e.detach().movedim(1, -1)[mask].requires_grad_()
        torch.manual_seed(step)
        out = rvq(z_e, mask)
        torch.manual_seed(step)
        expected = alone(visible)
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(out.quantized.movedim(1, -1)[mask], expected.quantized)
        assert torch.equal(out.indices[mask], expected.indices)
        assert (out.indices[~mask] == -1).all()
        (out.quantized.sin().sum() + out.loss).backward()
        (expected.quantized.sin().sum() + expected.loss).backward()
        torch.testing.assert_close(z_e.grad.movedim(1, -1)[mask], visible.grad)
        assert not z_e.grad.movedim(1, -1)[~mask].any()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(rvq.state_dict()[name], value)


@ALL
def test_dropped_stages_do_nothing_and_the_used_ones_what_a_shorter_layer_does(options) -> None:
    rvq = layer(quantize_dropout=True, **{**options, "revive_below": 0.0})
    numbers = set()
    for _ in range(30):
        before, z_e = copy.deepcopy(rvq), randn(10, 6)
        out, parts = rvq(z_e, return_parts=True)
        used = int((out.indices[0] >= 0).sum())
        numbers.add(used)
        assert (out.indices[:, :used] >= 0).all()
        assert (out.indices[:, used:] == -1).all()
        assert not parts.commitment[used:].any()
        torch.testing.assert_close(before.decode(out.indices), out.quantized)
        torch.testing.assert_close(before.decode(out.indices[:, :used]), out.quantized)
        out.loss.backward()
        for q in range(used, 4 if len(rvq.stages) == 4 else 0):
            codes = rvq.stages[q].codebook
            torch.testing.assert_close(codes, before.stages[q].codebook, rtol=0, atol=1e-12)
            assert codes.grad is None or not codes.grad.any()
        rvq.zero_grad()
    assert numbers == {1, 2, 3, 4}
    assert (rvq.eval()(z_e).indices >= 0).all()


def test_dropout_waits_for_the_kmeans_start_and_follows_torchs_seed() -> None:
    rvq = ResidualVQLayer(16, 6, 4, kmeans_init=True, quantize_dropout=True)
    z_e = torch.randn(100, 6)
    assert (rvq(z_e).indices >= 0).all()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([int((rvq(z_e).indices[0] >= 0).sum()) for _ in range(8)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1


@ALL
def test_copies_continue_as_the_original(options) -> None:
    assert_copies_continue(partial(ResidualVQLayer, 9, 6, 3, kmeans_init=True, **options))


def test_bfloat16_vectors_are_coded_in_float32() -> None:
    rvq = ResidualVQLayer(9, 6, 4)
    for q, stage in enumerate(rvq.stages):
        stage.set_codebook(torch.randn(9, 6) / 2**q)
    z_e = torch.randn(50, 6).bfloat16().requires_grad_()
    out = rvq(z_e)
    assert (out.quantized.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out.indices, by_hand(z_e.detach().double(), rvq.codebooks.detach().double())[1])
    (out.quantized.float().sum() + out.loss).backward()
    assert z_e.grad.dtype == torch.bfloat16


def test_runs_on_meta_and_frozen_codes_stay() -> None:
    with torch.device("meta"):
        rvq = ResidualVQLayer(9, 6, 3, decay=0.9, quantize_dropout=True)
        assert rvq(torch.zeros(2, 6, 5)).indices.shape == (2, 5, 3)
    rvq = layer(decay=0.9)
    rvq.freeze()
    before = rvq.codebooks.clone()
    rvq(randn(7, 6))
    assert torch.equal(rvq.codebooks, before)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_one_frozen_stage_stays_and_the_others_learn(decay) -> None:
    rvq = layer(decay=decay)
    rvq.stages[0].freeze()
    before = rvq.codebooks.detach().clone()
    rvq(randn(30, 6)).loss.backward()
    if decay is None:
        moved = [stage.codebook.grad is not None and bool(stage.codebook.grad.any()) for stage in rvq.stages]
    else:
        moved = (rvq.codebooks != before).flatten(1).any(1).tolist()
    assert moved == [False, True, True, True]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_quantizers": 0}, ValueError, "num_quantizers is 0; want a positive integer"),
        ({"num_quantizers": 2.0}, TypeError, "num_quantizers is 2.0; want a positive integer"),
        ({"num_embeddings": 0}, ValueError, "num_embeddings is 0"),
        ({"embedding_dim": "6"}, TypeError, "embedding_dim is '6'"),
        ({"codebook_dim": 0}, ValueError, "codebook_dim is 0"),
        ({"gradient": "none"}, ValueError, "gradient is 'none'"),
        ({"heads": 2}, TypeError, "unexpected keyword argument 'heads'"),
        ({"channel_dim": 0.25}, TypeError, "channel_dim is 0.25; want an integer"),
        ({"channel_dim": 5}, ValueError, "channel_dim is 5; want an integer in -5..4"),
        ({"quantize_dropout": 0.5}, TypeError, "quantize_dropout is 0.5; want True or False"),
        ({"shared_codebook": 1}, TypeError, "shared_codebook is 1; want True or False"),
        ({"decay": "0.9"}, TypeError, "decay is '0.9'; want a finite number"),
    ],
)
def test_bad_options_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        ResidualVQLayer(**{"num_embeddings": 9, "embedding_dim": 6, "num_quantizers": 4, **options})


@pytest.mark.parametrize(
    "codes, error, message",
    [
        (torch.full((3, 5), 9), ValueError, "indices has values 9..9; want -1..8"),
        (torch.full((3, 5), 0), ValueError, "indices has shape .3, 5.; want"),
        (torch.full((3, 4), 0.5), TypeError, "indices has dtype torch.float32"),
        ([0], TypeError, "indices is a list"),
    ],
)
def test_bad_codes_are_named(codes, error, message) -> None:
    with pytest.raises(error, match=message):
        layer().decode(codes)


@pytest.mark.parametrize("z_e", [torch.zeros(0, 6), torch.zeros(2, 5)])
def test_bad_vectors_are_named(z_e) -> None:
    for call in (layer(), layer().encode):
        with pytest.raises(ValueError, match="z_e has"):
            call(z_e)


def test_equals_vector_quantize_pytorch() -> None:
    peers = pytest.importorskip("vector_quantize_pytorch")
    rvq = ResidualVQLayer(9, 6, 4, channel_dim=-1, decay=0.8, beta=1.0, kmeans_init=False, revive_below=0)
    peer = peers.ResidualVQ(dim=6, codebook_size=9, num_quantizers=4, rotation_trick=False, decay=0.8)
    for stage, layer in zip(rvq.stages, peer.layers, strict=True):
        stage.set_codebook(torch.randn(9, 6))
        layer._codebook.embed.data.copy_(stage.codebook.unsqueeze(0))
        layer._codebook.embed_avg.data.copy_(layer._codebook.embed)
        layer._codebook.cluster_size.data.fill_(1)
    z_e = torch.randn(4, 7, 6)
    out, parts = rvq(z_e, return_parts=True)
    quantized, indices, losses = peer(z_e)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized)
    torch.testing.assert_close(parts.commitment, losses.squeeze())
    expected = torch.cat([layer._codebook.embed for layer in peer.layers])
    torch.testing.assert_close(rvq.codebooks, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("shared", [False, True])
def test_dead_codes_of_each_stage_become_what_its_stage_was_given(decay: float | None, shared: bool) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 3, 50)
    rvq = ResidualVQLayer(8, 3, 4, decay=decay, kmeans_init=False, revive_below=1.0, shared_codebook=shared)
    codebooks = torch.randn(1 if shared else 4, 8, 3).expand(4, -1, -1).clone()
    codebooks[:, 5:] += 1000  # no vector's
    rvq.set_codebooks(codebooks)
    for stage in rvq.stages:
        stage.ema_counts.zero_()[:5] = 50
    indices = rvq(z).indices
    residual, given = z.movedim(1, -1), []
    for q in range(4):
        given.append(residual.flatten(0, 1))
        residual = residual - codebooks[q][indices[..., q]]
    for q, stage in enumerate(rvq.stages):
        choices = torch.cat(given) if shared else given[q]
        revived = stage.codebook[5:].unsqueeze(1) == choices
        assert revived.all(-1).any(-1).all()
        assert stage.codebook[:5].abs().max() < 100
