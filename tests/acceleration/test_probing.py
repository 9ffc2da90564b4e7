"""Quantisers in plain PyTorch that are accelerated: their conventions, averages and modes."""

import copy

import pytest
import torch
from torch import Tensor

import vqfast
from tests.acceleration.compare import assert_same_curve, nearest, same, searches
from tests.acceleration.quantisers import (
    ChannelsLast,
    D,
    EMAVectorQuantizer,
    K,
    Named,
    Nested,
    OwnCodebook,
    Quantize,
    RawCountsEMA,
    TurnedCodebook,
    VectorQuantizer,
    VectorQuantizerEMA,
    VQEmbedding,
)
from vqfast.acceleration import search
from vqfast.acceleration.behaviour import Average, averaged
from vqfast.functional import quantize
from vqfast.nn import ranks


def images() -> list[Tensor]:
    return [torch.randn(2, D, 4, 5), torch.randn(3, D, 4, 4)]


@pytest.mark.parametrize("cls", [VectorQuantizer, Nested, VQEmbedding, VectorQuantizerEMA, RawCountsEMA])
def test_conventions_of_images(cls):
    fast = same(cls(), images())
    assert vqfast.accelerate(fast).accelerated == [("", cls.__name__, K, D, "")]


def test_channels_last_of_any_number_of_dimensions():
    same(ChannelsLast(), [torch.randn(2, 4, 5, D), torch.randn(2, 9, D), torch.randn(19, D)])


@pytest.mark.parametrize("cls", [Quantize, OwnCodebook, TurnedCodebook])
def test_a_codebook_in_a_tensor_of_its_own(cls):
    fast = same(cls(), [torch.randn(2, 4, 5, D), torch.randn(3, 9, D), torch.randn(2, 4, 5, D)])
    assert vqfast.accelerate(fast).accelerated == [("", cls.__name__, K, D, "")]


def test_averages_beside_the_codes():
    slow = EMAVectorQuantizer()
    fast = same(slow, images())
    assert vqfast.accelerate(fast).accelerated == [("", "EMAVectorQuantizer", K, D, "")]
    fast.train().embedding.update = False
    assert searches(fast, images()[0])[1] == 0


def test_averages_in_float16_count_more_vectors_than_it_can():
    counts = torch.full((4,), 30_000.0)
    out = quantize(torch.ones(1, 2), torch.ones(4, 2), return_statistics=True)
    out = out._replace(counts=counts.long(), sums=counts.unsqueeze(1).expand(4, 2))
    average = Average("counts", "sums", 0.9, 1e-5, keeps_smoothed=False)
    codes, *_ = averaged(average, counts.half(), counts.half().unsqueeze(1).expand(4, 2), out)
    torch.testing.assert_close(codes, torch.ones(4, 2))


def test_averages_compile():
    torch.compiler.reset()
    slow = Quantize()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = torch.randn(2, 20, D)
        torch.testing.assert_close(compiled(x), slow(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.state_dict(), slow.state_dict(), rtol=1e-4, atol=1e-5)


def test_as_many_codes_as_channels():
    same(Quantize(8, 8), [torch.randn(2, 4, 5, 8)])


def test_averages_with_several_ranks_go_to_the_original(monkeypatch):
    early, late = Quantize(), Quantize()
    vqfast.accelerate(early)
    monkeypatch.setattr(ranks, "several", lambda: True)
    (entry,) = vqfast.accelerate(late).accelerated
    assert entry.note.endswith(
        "keeps its own code: one of several ranks can't see whether its averages are joined"
    )
    for fast in (early, late):
        for training in (True, False):
            assert searches(fast.train(training), torch.randn(2, 4, 5, D))[1] == (not training)


def test_audio_and_nested_returns():
    same(Named(), [torch.randn(2, D, 30)])


def test_straight_through():
    same(VQEmbedding(), images(), lambda module, z: module.straight_through(z))


def test_codes_are_those_of_float64():
    slow = VQEmbedding()
    slow.embedding.weight.data += 100
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(4, D, 32, 32) + 100
    truth = nearest(x.movedim(1, -1), slow.embedding.weight.detach())
    assert torch.equal(fast(x), truth)
    assert (slow(x) != truth).sum() > 10  # the library errs


@pytest.mark.parametrize("cls", [VectorQuantizer, VectorQuantizerEMA])
def test_ten_steps_give_the_same_curve(cls):
    assert_same_curve(cls(), lambda out, z: (out[1] - z).square().mean() + out[0], (4, D, 5, 5), rel=1e-3)


def test_a_changed_setting_or_another_call_goes_to_the_original():
    slow = Nested()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = images()[0]
    assert searches(fast, x)[1] == 1
    assert searches(lambda: fast(x, temp=None))[1] == searches(lambda: fast(z=x))[1] == 0
    fast.commitment_cost = slow.commitment_cost = 3.0
    (_, loss, _), searched = searches(fast, x)
    assert searched == 0
    torch.testing.assert_close(loss, slow(x)[1])


def test_without_weights():
    with torch.device("meta"):
        module = VectorQuantizer()
    (entry,) = vqfast.accelerate(module).left_alone
    assert entry.note == "its weights are on the meta device"


def test_a_small_call_goes_to_the_original(monkeypatch):
    monkeypatch.setattr(search, "MIN_WORK", 10 * K * D)
    for cls, learning, least in ((ChannelsLast, False, 10), (ChannelsLast, True, 80), (Quantize, False, 40)):
        fast = cls()
        vqfast.accelerate(fast)
        with torch.set_grad_enabled(learning):
            counts = [searches(fast, torch.randn(1, n, D))[1] for n in (least - 1, least)]
        assert counts == [0, 1]


def test_one_vector_is_searched():
    same(VQEmbedding(), [torch.randn(1, D, 1, 1)])


def test_probing_leaves_no_trace():
    module = VectorQuantizerEMA().train()
    state, noise = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    vqfast.accelerate(module)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)
    assert torch.equal(torch.random.get_rng_state(), noise)
    assert module.training and all(weight.grad is None for weight in module.parameters())
