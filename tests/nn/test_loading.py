"""Codebooks from elsewhere: loaded, copied, averaged; nobody's code vectors are overwritten."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.nn.layers import RULES
from vqfast.nn import ResidualVQLayer, VQLayer

OPTIONS = {
    "plain": {},
    "k-means": {"kmeans_init": True},
    "revival": {"revive_below": 0.5},
    "ema": {"decay": 0.9},
    "ema revival": {"decay": 0.9, "revive_below": 0.5},
    "all": {"decay": 0.9, "revive_below": 0.5, "kmeans_init": True},
}
PLACES = {
    "copy_": lambda vq, codes: vq.codebook.copy_(codes),
    "data": lambda vq, codes: vq.codebook.data.copy_(codes),
    "data itself": lambda vq, codes: setattr(vq.codebook, "data", codes.clone()),
    "one by one": lambda vq, codes: [vq.codebook[k].copy_(row) for k, row in enumerate(codes)],
    "another tensor": lambda vq, codes: setattr(
        vq, "codebook", codes.clone() if vq.decay else nn.Parameter(codes.clone())
    ),
    "set_codebook": lambda vq, codes: vq.set_codebook(codes),
    "load_state_dict": lambda vq, codes: vq.load_state_dict({"codebook": codes}),
    "not strict": lambda vq, codes: vq.load_state_dict({"codebook": codes, "other": codes}, strict=False),
    "assign": lambda vq, codes: vq.load_state_dict({"codebook": codes}, assign=True),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("trained", [False, True])
def test_code_vectors_that_were_put_there_are_what_learning_goes_on_from(name, place, trained) -> None:
    vq, codes = VQLayer(9, 4, **OPTIONS[name]), torch.randn(9, 4) + torch.arange(9.0).unsqueeze(1) * 20
    for _ in range(5 * trained):
        vq(torch.randn(50, 4))
    with torch.no_grad():
        place(vq, codes)
    z = codes.repeat(5, 1)
    out = vq(z + 0.01)
    assert torch.equal(out.indices, torch.arange(9).repeat(5))
    torch.testing.assert_close(out.quantized.detach(), z)  # as they were put
    torch.testing.assert_close(vq.codebook.detach(), codes, rtol=0, atol=0.011)
    vq(codes[:1].repeat(50, 1))
    torch.testing.assert_close(vq.codebook[1:].detach(), codes[1:], rtol=0, atol=0.011)


def test_a_part_of_the_codes_put_there_leaves_the_average_of_the_others() -> None:
    vq = VQLayer(9, 4, decay=0.9)
    for _ in range(5):
        vq(torch.randn(50, 4))
    twin, other, rest = copy.deepcopy(vq), torch.full((4,), 50.0), torch.arange(9) != 3
    vq.codebook[3] = other
    z = twin.codebook[rest].repeat(5, 1)
    assert torch.equal(vq(z).indices, twin(z).indices)
    assert torch.equal(vq.codebook[rest], twin.codebook[rest])
    torch.testing.assert_close(vq.codebook[3], other)


@pytest.mark.parametrize("first, second", itertools.product(OPTIONS, OPTIONS))
@pytest.mark.parametrize("make", [VQLayer, lambda *sizes, **options: ResidualVQLayer(*sizes, 2, **options)])
def test_states_load_whatever_options_they_were_saved_with(first, second, make) -> None:
    saved, vq = make(9, 4, **OPTIONS[first]), make(9, 4, **OPTIONS[second])
    for _ in range(3):
        saved(torch.randn(50, 4))
    state = copy.deepcopy(saved.state_dict())
    vq.load_state_dict(state)
    for name, value in vq.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name])
    z = torch.randn(50, 4)
    assert torch.equal(saved.eval()(z).indices, vq(z).indices)
    assert all(value.isfinite().all() for value in vq.state_dict().values())


def test_statistics_that_a_state_lacks_start_from_its_codebook() -> None:
    codes = torch.randn(9, 4)
    fresh, loaded = VQLayer(9, 4, decay=0.9), VQLayer(9, 4, decay=0.9)
    loaded(torch.randn(50, 4))
    fresh.set_codebook(codes)
    loaded.load_state_dict({"codebook": codes})
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_state_of_before_the_start_still_waits_and_an_older_one_is_understood() -> None:
    vq, waiting = VQLayer(9, 4, kmeans_init=True), VQLayer(9, 4, kmeans_init=True)
    vq(torch.randn(50, 4))
    started = copy.deepcopy(vq.state_dict())
    vq.load_state_dict(waiting.state_dict())
    assert vq.starts
    for assign in (False, True):
        vq.load_state_dict({**started, "initialised": torch.tensor(True)}, assign=assign)
        assert not vq.starts
        assert vq.initialised.dtype == torch.float32
    vq.load_state_dict({**started, "initialised": torch.tensor(False)})
    before = vq.codebook.detach().clone()
    vq.load_state_dict({}, strict=False)
    vq(torch.randn(50, 4))
    assert not torch.equal(vq.codebook, before)


def test_a_state_of_codes_that_were_put_there_before_the_start_has_started() -> None:
    first, second = VQLayer(9, 4, kmeans_init=True), VQLayer(9, 4, kmeans_init=True)
    codes = torch.randn(9, 4)
    with torch.no_grad():
        first.codebook.copy_(codes)
    second.load_state_dict(first.state_dict())
    second(torch.randn(50, 4))
    assert torch.equal(second.codebook, codes)


def test_keys_missing_from_a_state_are_still_named() -> None:
    vq = VQLayer(9, 4, decay=0.9)
    with pytest.raises(RuntimeError, match="codebook"):
        vq.load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch for codebook"):
        vq.load_state_dict({"codebook": torch.zeros(8, 4)})
    with pytest.raises(RuntimeError, match="other"):
        vq.load_state_dict({"codebook": torch.zeros(9, 4), "other": torch.zeros(1)})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_layer_built_on_meta_takes_a_state(options) -> None:
    codes = torch.randn(9, 4)
    with torch.device("meta"):
        vq = VQLayer(9, 4, **options)
    vq.load_state_dict({"codebook": codes}, assign=True)
    vq(codes.repeat(5, 1))
    torch.testing.assert_close(vq.codebook.detach(), codes)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("multi", [None, get_ema_multi_avg_fn(0.9)])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_models_can_be_averaged(options, multi, use_buffers) -> None:
    vq = VQLayer(9, 4, **options)
    model = nn.ModuleList([nn.Linear(1, 1), vq])
    average = AveragedModel(model, multi_avg_fn=multi, use_buffers=use_buffers)
    mean, seen = average.module[1], []
    for _ in range(3):
        vq(torch.randn(50, 4))
        with torch.no_grad():
            vq.codebook.mul_(0.9)
        average.update_parameters(model)
        seen.append(vq.codebook.detach().clone())
    if vq.decay is None or use_buffers:
        expected = (
            torch.stack(seen).mean(0) if multi is None else (seen[0].lerp(seen[1], 0.1)).lerp(seen[2], 0.1)
        )
        torch.testing.assert_close(mean.codebook.detach(), expected)
    if vq.kmeans_init:
        assert mean.initialised > 0.99
    before = mean.codebook.detach().clone()
    mean.train()(before.repeat(5, 1))
    torch.testing.assert_close(mean.codebook.detach(), before, rtol=1e-4, atol=1e-4)


@RULES
def test_a_pending_start_survives_moves_and_conversions(decay) -> None:
    vq, z = VQLayer(9, 4, decay=decay, kmeans_init=True), 50 + torch.randn(50, 4)
    for one in (vq, copy.deepcopy(vq), copy.deepcopy(vq).double(), copy.deepcopy(vq).half().float()):
        one(z.to(one.codebook.dtype))
        assert one.codebook.mean() > 40
