"""``VQLayer`` with any options as a module: states, copies, meta, autocast; and bad options."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch

from tests.nn.layers import ALL, RULES, STILL, assert_copies_continue
from vqfast.nn import ResidualVQLayer, VQLayer
from vqfast.nn.codebook import Codebook


def test_state_dict_has_the_keys_that_the_options_need() -> None:
    assert list(VQLayer(9, 4).state_dict()) == ["codebook", "ema_counts", "initialised"]
    assert list(VQLayer(9, 4, **STILL).state_dict()) == ["codebook"]
    assert list(VQLayer(9, 4, **STILL, decay=0.9).state_dict()) == ["codebook", "ema_counts", "ema_sums"]
    assert list(VQLayer(9, 4, kmeans_init=False).state_dict()) == ["codebook", "ema_counts"]
    assert isinstance(VQLayer(9, 4), Codebook)


@ALL
@pytest.mark.parametrize("kmeans_init", [False, True])
def test_copies_continue_as_the_original(options, kmeans_init) -> None:
    assert_copies_continue(partial(VQLayer, 9, 6, kmeans_init=kmeans_init, **options))


@ALL
def test_builds_and_runs_on_meta(options) -> None:
    with torch.device("meta"):
        vq = VQLayer(9, 6, kmeans_init=True, **options)
        out = vq(torch.zeros(2, 6, 5), torch.ones(2, 5, dtype=torch.bool))
    assert (out.quantized.shape, out.indices.shape[:2], out.loss.shape) == ((2, 6, 5), (2, 5), ())
    vq.to_empty(device="cpu").reset_parameters()
    assert vq.codebook.isfinite().all()
    assert not vq.initialised


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_state_in_float32_and_the_codes_exact(options, dtype) -> None:
    encoder, vq = torch.nn.Linear(5, 6), VQLayer(9, 6, channel_dim=-1, **options)
    vq.set_codebook(torch.randn(vq.codebook.shape))
    codes = copy.deepcopy(vq).eval()
    x = torch.randn(30, 5)
    with torch.autocast("cpu", dtype):
        z_e = encoder(x)
        out = vq(z_e)
        expected = codes(z_e)
    assert z_e.dtype == out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.indices, expected.indices)
    if vq.projection.project_in is None and vq.heads == 1 and vq.metric == "l2":
        distances = torch.cdist(z_e.detach().double(), codes.codebook.detach().double())
        assert torch.equal(out.indices, distances.argmin(-1))
    (out.quantized.float().sum() + out.loss).backward()
    assert {value.dtype for value in vq.state_dict().values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in (*encoder.parameters(), *vq.parameters()))


@RULES
def test_grad_scaler_skips_a_bad_step_and_the_codebook_survives(decay) -> None:
    encoder, vq = torch.nn.Linear(5, 4), VQLayer(9, 4, decay=decay, revive_below=0.5)
    parameters = [*encoder.parameters(), *vq.parameters()]
    optimizer, scaler = torch.optim.SGD(parameters, lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for step in range(4):
        before = [p.detach().clone() for p in parameters]
        x = torch.randn(30, 5)
        x[0] *= 1e30 if step == 1 else 1
        with torch.autocast("cpu", torch.float16):
            out = vq(encoder(x))
        optimizer.zero_grad()
        scaler.scale(out.quantized.float().square().mean() + out.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
        assert moved == (step != 1)
    assert all(value.isfinite().all() for value in vq.state_dict().values())
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize(
    "options, error",
    [
        ({"metric": "dot"}, ValueError),
        ({"heads": 0}, ValueError),
        ({"heads": 2.0}, TypeError),
        ({"codebook_dim": 0}, ValueError),
        ({"codebook_dim": "3"}, TypeError),
        ({"revive_below": -1.0}, ValueError),
        ({"revive_below": float("nan")}, ValueError),
        ({"gradient": "reinforce"}, ValueError),
        ({"num_embeddings": True}, TypeError),
        ({"beta": "x"}, TypeError),
        ({"beta": True}, TypeError),
        ({"decay": "0.9"}, TypeError),
        ({"decay": True}, TypeError),
        ({"decay": 1.0}, ValueError),
        ({"eps": None}, TypeError),
        ({"eps": float("nan")}, ValueError),
        ({"channel_dim": 5}, ValueError),
        ({"channel_dim": 1.0}, TypeError),
        ({"channel_dim": True}, TypeError),
        ({"kmeans_init": "no"}, TypeError),
        ({"learnable": 1}, TypeError),
        ({"separate_codebooks": None}, TypeError),
        ({"revive_below": "2"}, TypeError),
    ],
)
def test_bad_options_are_named(options, error) -> None:
    [(name, value)] = options.items()
    with pytest.raises(error, match=f"{name} is {re.escape(repr(value))}"):
        VQLayer(**{"num_embeddings": 8, "embedding_dim": 4, **options})


@pytest.mark.parametrize(
    "codebook, error, message",
    [
        ([1], TypeError, "codebook is a list; want a tensor"),
        (torch.zeros(8, 4, dtype=torch.int64), TypeError, "codebook has dtype torch.int64"),
        (torch.zeros(8, 5), ValueError, "codebook has shape (8, 5); want (8, 4)"),
    ],
)
def test_bad_codebooks_are_named(codebook, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        VQLayer(8, 4).set_codebook(codebook)


def test_heads_that_do_not_divide_the_channels_are_named() -> None:
    with pytest.raises(ValueError, match="embedding_dim is 4; want a multiple of heads = 3"):
        VQLayer(8, 4, heads=3)
    with pytest.raises(ValueError, match="2 heads"):
        VQLayer(8, 4, heads=2).decode(torch.zeros(3, 5, dtype=torch.int64))
    for make in (VQLayer, partial(VQLayer, codebook_dim=3), partial(ResidualVQLayer, 1)):
        with pytest.raises(ValueError, match="indices has shape"):
            make(8, 4, channel_dim=3).decode(torch.zeros(2, 1, dtype=torch.int64))
