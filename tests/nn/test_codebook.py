"""How a codebook starts and stays in use: k-means, revival."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nn.layers import RULES, layer, randn, state
from vqfast.nn import VQLayer, ranks
from vqfast.nn.kmeans import kmeans

# k-means start


@RULES
def test_kmeans_start_finds_the_distinct_vectors_of_the_first_batch(decay) -> None:
    vq = VQLayer(6, 4, decay=decay, kmeans_init=True).double()
    distinct = torch.randn(6, 4, dtype=torch.float64)
    out = vq(distinct.repeat(5, 1))
    assert out.loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(out.quantized.detach(), distinct.repeat(5, 1))
    assert vq.initialised


def test_kmeans_start_ends_where_every_code_is_the_mean_of_its_vectors() -> None:
    vq, z_e = VQLayer(4, 3, kmeans_init=True).double(), 9 * torch.randn(4, 3).double()
    z_e = z_e.repeat_interleave(50, 0) + torch.randn(200, 3)
    indices = vq(z_e).indices
    for k in indices.unique():
        torch.testing.assert_close(vq.codebook[k].detach(), z_e[indices == k].mean(0))


def test_kmeans_of_unit_vectors_is_spherical_and_that_of_heads_is_each_ones_own() -> None:
    vq = VQLayer(3, 8, heads=2, separate_codebooks=True, metric="cosine", kmeans_init=True).double()
    z_e = randn(60, 8).detach() + torch.tensor([5.0] * 4 + [-5.0] * 4)
    indices, vectors = vq(z_e).indices, F.normalize(z_e.view(60, 2, 4), dim=-1)
    for head in range(2):
        for k in indices[:, head].unique():
            mean = vectors[indices[:, head] == k, head].mean(0)
            cosine = torch.cosine_similarity(vq.codebook[head, k].detach(), mean, dim=0)
            assert cosine > 0.999
    torch.testing.assert_close(vq.codebook.detach().norm(dim=-1), torch.ones(2, 3).double())


def test_kmeans_starts_once_in_training_and_the_state_dict_remembers() -> None:
    vq, z_e = VQLayer(6, 4, kmeans_init=True), torch.randn(50, 4)
    before = vq.codebook.detach().clone()
    vq.eval()(z_e)
    vq.train().encode(z_e)
    assert torch.equal(vq.codebook, before)
    vq(z_e)
    after = vq.codebook.detach().clone()
    assert not torch.equal(after, before)
    twins = [copy.deepcopy(vq), pickle.loads(pickle.dumps(vq)), VQLayer(6, 4, kmeans_init=True)]
    twins[2].load_state_dict(vq.state_dict())
    for one in (vq, *twins):
        one(torch.randn(50, 4))
        assert torch.equal(one.codebook, after)
    vq.load_state_dict(VQLayer(6, 4, kmeans_init=True).state_dict())
    vq.reset_parameters()
    vq(z_e)
    assert vq.initialised


def test_set_codebook_takes_the_place_of_kmeans() -> None:
    vq = VQLayer(6, 4, kmeans_init=True, revive_below=0)
    codes = torch.randn(6, 4)
    vq.set_codebook(codes)
    vq(torch.randn(50, 4))
    assert torch.equal(vq.codebook, codes)


def test_kmeans_leaves_out_vectors_that_are_not_finite_and_refuses_a_batch_of_them() -> None:
    vq = VQLayer(3, 4, kmeans_init=True)
    with pytest.raises(ValueError, match="no finite vector to start k-means from"):
        vq(torch.full((5, 4), torch.nan))
    z_e = torch.randn(20, 4)
    z_e[3] = torch.inf
    vq(z_e)
    assert vq.codebook.isfinite().all()


def test_kmeans_follows_torchs_seed() -> None:
    z_e, codebooks = torch.randn(200, 4), []
    for seed in (1, 1, 2):
        vq = VQLayer(6, 4, kmeans_init=True)
        torch.manual_seed(seed)
        vq(z_e)
        codebooks.append(vq.codebook)
    assert torch.equal(codebooks[0], codebooks[1])
    assert not torch.equal(codebooks[0], codebooks[2])


def test_kmeans_finds_clear_clusters() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        clusters, vq = 20 * torch.randn(64, 8), VQLayer(64, 8, kmeans_init=True)
        z_e = clusters.repeat_interleave(30, 0) + torch.randn(1920, 8)
        assert vq.perplexity(vq(z_e).indices) > 60


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("num, distinct", [(40, 40), (40, 7), (400, 7), (3, 1)])
def test_kmeans_of_fewer_distinct_vectors_than_codes_has_no_code_twice(metric, num, distinct) -> None:
    z_e = torch.randn(distinct, 8)[torch.arange(num) % distinct]
    vq = VQLayer(100, 8, kmeans_init=True, revive_below=0, metric=metric)
    assert vq(z_e).loss < 1e-10
    assert len(vq.codebook.unique(dim=0)) == 100
    away = torch.cdist(vq.codebook.detach(), F.normalize(z_e, dim=-1) if metric == "cosine" else z_e)
    assert away.amin(1).max() < (5 if distinct > 1 else 20)


@pytest.mark.parametrize("size", [1e-38, 1e30, 1e38])
@pytest.mark.parametrize("num", [6, 500])
def test_kmeans_of_very_large_or_small_vectors_is_that_of_others_scaled(size, num) -> None:
    z_e, books = torch.randn(num, 4).clamp(-3, 3), []
    for factor in (1.0, size):
        torch.manual_seed(0)
        vq = VQLayer(6, 4, kmeans_init=True)
        assert not vq(z_e * factor).loss.isnan()
        books.append(vq.codebook.detach().double() / factor)
    torch.testing.assert_close(*books, rtol=1e-4, atol=1e-4)


def test_kmeans_of_float64_numbers_of_any_size() -> None:
    x = torch.randn(100, 2, dtype=torch.float64)
    torch.testing.assert_close(kmeans(x * 2.0**600, 5) / 2.0**600, kmeans(x, 5), rtol=1e-12, atol=0)


def test_kmeans_starts_many_codes_from_few_vectors_in_no_time() -> None:
    vq, z_e = VQLayer(65536, 8, kmeans_init=True), torch.randn(4096, 8)
    assert vq(z_e).loss == 0


# revival


@RULES
def test_dead_codes_become_vectors_of_the_batch_and_the_others_stay(decay) -> None:
    twins = [layer(decay=decay, revive_below=below) for below in (0.0, 0.5)]
    codes = torch.randn(9, 4)
    codes[5:] += 100
    z_e = torch.randn(500, 4).double()
    for vq in twins:
        vq.set_codebook(codes)
        for _ in range(6):  # 0.9 ** 7 is the first power below a half
            vq(z_e)
    codebooks = [vq.codebook.detach().clone() for vq in twins]
    torch.testing.assert_close(codebooks[0], codebooks[1])
    for vq in twins:
        vq(z_e)
    alive, revived = twins[1].codebook[:5].detach(), twins[1].codebook[5:].detach()
    if decay:
        torch.testing.assert_close(alive, twins[0].codebook[:5].detach(), rtol=1e-6, atol=0)
    else:
        assert torch.equal(alive, twins[0].codebook[:5])
    picked = (revived.unsqueeze(1) == z_e).all(-1).int().argmax(1)
    assert torch.equal(revived, z_e[picked])
    assert len(picked.unique()) == 4
    assert twins[1].ema_counts[5:].tolist() == [1] * 4
    assert "ema_counts" not in VQLayer(9, 4, revive_below=0).state_dict()


@pytest.mark.parametrize("decay", [None, 0.99])
def test_revival_brings_a_collapsed_codebook_to_use(decay) -> None:
    vq = layer(32, 4, decay=decay, revive_below=0.5)
    vq.set_codebook(100 + torch.randn(32, 4))
    z_e = randn(400, 4).detach()
    assert vq.perplexity(vq(z_e).indices) < 5
    for _ in range(90):
        indices = vq(z_e).indices
    assert vq.perplexity(indices) > 20


@pytest.mark.parametrize("change", [lambda vq: vq.eval(), lambda vq: vq.freeze()])
@RULES
def test_neither_eval_mode_nor_a_frozen_codebook_revives(decay, change) -> None:
    vq = layer(decay=decay, revive_below=50.0, learnable=True)
    change(vq)
    before = state(vq)
    vq(randn(6, 4))
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


@RULES
def test_two_passes_before_one_backward_have_the_gradients_of_their_own_codes(decay) -> None:
    vq, inputs = layer(decay=decay, revive_below=3.0), [randn(30, 4), randn(30, 4)]
    twin = copy.deepcopy(vq)
    expected = torch.autograd.grad(twin(inputs[0]).loss, inputs[0])[0]
    losses = [vq(z_e).loss for z_e in inputs]
    assert torch.equal(torch.autograd.grad(sum(losses), inputs)[0], expected)


def test_revival_takes_no_vector_that_is_not_finite() -> None:
    vq = layer(decay=0.9, revive_below=4.0)
    z_e = torch.full((40, 4), torch.nan).double()
    z_e[::2] = torch.randn(20, 4)
    for _ in range(5):
        vq(z_e)
    assert all(value.isfinite().all() for value in vq.state_dict().values())


def sampled(x: Tensor, mask: Tensor | None, num: int) -> Tensor:
    return ranks.sample(len(x), mask, ranks.noise(num, x.device), x.__getitem__)


@pytest.mark.parametrize("num, size", [(5, 5), (5, 6), (5, 1000), (7, 3), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_sample_draws_distinct_vectors_each_equally_often(num, size, masked) -> None:
    mask = torch.zeros(2 * size, dtype=torch.bool)
    mask[torch.randperm(2 * size)[:size]] = True
    x = mask.nonzero() if not masked else torch.arange(2 * size).unsqueeze(1)
    where = mask if masked else None
    draws = torch.stack([sampled(x.double(), where, num) for _ in range(50)])
    picked = draws.long().flatten(1)
    assert mask[picked].all()
    assert all(len(one.unique()) == min(num, size) for one in picked)
    assert torch.isin(mask.nonzero(), picked).float().mean() > 0.2


def test_revival_that_no_batch_can_meet_is_told_once_and_scaled() -> None:
    torch.manual_seed(0)
    codes, held_out, losses = torch.randn(256, 8), torch.randn(2000, 8), []
    for below in (0.0, 2.0):
        vq = VQLayer(256, 8, decay=0.9, revive_below=below)
        vq.set_codebook(codes)
        context = pytest.warns(UserWarning, match="revive_below is 2.0; 256 vectors a batch are 1 for each")
        with context if below else nullcontext():
            vq(torch.randn(256, 8))
        for _ in range(150):
            vq(torch.randn(256, 8))
        losses.append(vq.eval()(held_out).loss)
    assert losses[1] < 1.1 * losses[0]


def test_sample_of_nothing_is_nan() -> None:
    assert sampled(torch.ones(5, 2), torch.zeros(5, dtype=torch.bool), 3).isnan().all()
    assert sampled(torch.ones(0, 2), None, 3).isnan().all()
