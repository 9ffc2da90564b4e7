"""Checkpoints of vector-quantize-pytorch: a converted layer goes on as the library's own does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vqfast

library = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
K, D, Q = 32, 16, 3
LEARNABLE = {"learnable_codebook": True, "ema_update": False}
# Options there, and here.
SINGLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"gradient": "rotation"}),
    ({"rotation_trick": False, "decay": 0.9, "commitment_weight": 0.5}, {"decay": 0.9, "beta": 0.5}),
    ({"use_cosine_sim": True}, {"metric": "cosine", "gradient": "rotation"}),
    ({"kmeans_init": True, "threshold_ema_dead_code": 0}, {"kmeans_init": True, "gradient": "rotation"}),
    ({"codebook_dim": 4, "eps": 1e-3}, {"codebook_dim": 4, "eps": 1e-3, "gradient": "rotation"}),
    (
        {"heads": 4, "codebook_dim": 4, "rotation_trick": False},
        {"heads": 4},
    ),
    (
        {"heads": 4, "codebook_dim": 4, "separate_codebook_per_head": True, "rotation_trick": False},
        {"heads": 4, "separate_codebooks": True},
    ),
    ({"heads": 2}, {"heads": 2, "codebook_dim": D, "gradient": "rotation"}),
    ({**LEARNABLE, "rotation_trick": False}, {"decay": None}),
    ({"accept_image_fmap": True}, {"channel_dim": 1, "gradient": "rotation"}),
]
RESIDUAL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"use_cosine_sim": True}, {"metric": "cosine"}),
    ({"codebook_dim": 8}, {"codebook_dim": 8}),
    (LEARNABLE, {"decay": None}),
    ({**LEARNABLE, "shared_codebook": True}, {"decay": None, "shared_codebook": True}),
]
OURS = {"beta": 1.0, "decay": 0.8, "channel_dim": -1, "kmeans_init": False, "revive_below": 0.0}


def trained(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """After some steps, by gradients too where there are parameters."""
    for _ in range(4):
        gradient_step(module, module.train()(torch.randn(shape))[2].sum())
    return module


def gradient_step(module: nn.Module, loss: Tensor) -> None:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if weights:
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data -= 0 if gradient is None else gradient


def check_next_step(theirs: nn.Module, layer: vqfast.VQLayer | vqfast.ResidualVQLayer, x: Tensor) -> None:
    """Codes in evaluation, and results, loss and codebooks of a training step, agree."""
    state = copy.deepcopy(vqfast.convert_state_dict(theirs.state_dict(), layer))
    layer.load_state_dict(state)
    assert torch.equal(layer.encode(x), theirs.eval()(x)[1])
    expected, indices, loss = theirs.train()(x)
    output, parts = layer(x, return_parts=True)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.quantized, expected, rtol=1e-5, atol=1e-5)
    weight = getattr(theirs, "layers", [theirs])[0].commitment_weight
    torch.testing.assert_close(
        weight * parts.commitment, loss.view_as(parts.commitment), rtol=1e-5, atol=1e-6
    )
    gradient_step(theirs, loss.sum())
    gradient_step(layer, output.loss)
    after = vqfast.convert_state_dict(theirs.state_dict(), layer)
    own = layer.state_dict()
    for name, tensor in after.items():
        assert name.startswith("projection") or name.endswith("initialised") or (tensor != state[name]).any()
        torch.testing.assert_close(own[name], tensor, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize(("options", "own"), SINGLE, ids=str)
def test_vector_quantize(options, own):
    x = torch.randn(2, D, 10, 12) if options.get("accept_image_fmap") else torch.randn(2, 120, D)
    theirs = trained(library.VectorQuantize(dim=D, codebook_size=K, **options), x.shape)
    check_next_step(theirs, vqfast.VQLayer(K, D, **{**OURS, **own}), x)


@pytest.mark.parametrize(("options", "own"), RESIDUAL, ids=str)
def test_residual_vq(options, own):
    x = torch.randn(2, 120, D)
    theirs = library.ResidualVQ(dim=D, codebook_size=K, num_quantizers=Q, rotation_trick=False, **options)
    layer = vqfast.ResidualVQLayer(num_embeddings=K, embedding_dim=D, num_quantizers=Q, **{**OURS, **own})
    check_next_step(trained(theirs, x.shape), layer, x)


def test_an_average_of_a_shared_codebook_moves_as_far():
    """There it decays once a stage, here once a step."""
    x, decay = torch.randn(2, 120, D), 0.99
    options = {"shared_codebook": True, "rotation_trick": False, "decay": decay}
    theirs = trained(library.ResidualVQ(dim=D, codebook_size=K, num_quantizers=Q, **options), x.shape)
    layer = vqfast.ResidualVQLayer(
        num_embeddings=K,
        embedding_dim=D,
        num_quantizers=Q,
        shared_codebook=True,
        **{**OURS, "decay": decay**Q},
    )
    before = copy.deepcopy(vqfast.convert_state_dict(theirs.state_dict(), layer))
    layer.load_state_dict(before)
    assert torch.equal(layer(x).indices, theirs.train()(x)[1])
    after = vqfast.convert_state_dict(theirs.state_dict(), layer)
    own, start, expected = (
        torch.cat([tensors[name].flatten() for name in before if name != "initialised"])
        for tensors in (layer.state_dict(), before, after)
    )
    assert (own - expected).norm() < 0.02 * (start - expected).norm()


def test_a_codebook_that_waits_for_k_means_still_waits():
    theirs = library.VectorQuantize(dim=D, codebook_size=K, kmeans_init=True)
    layer = vqfast.VQLayer(K, D, decay=0.8, channel_dim=-1, kmeans_init=True)
    layer.load_state_dict(vqfast.convert_state_dict(theirs.state_dict(), layer))
    layer(torch.randn(2, 120, D))
    assert layer.initialised == 1 and layer.codebook.any(1).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"affine_param": True}, "_codebook.codebook_mean"),
        ({"codebook_dim": 4, "layernorm_after_project_in": True}, "project_in.0.weight"),
    ],
)
def test_options_without_a_counterpart_are_named(options, name):
    theirs = library.VectorQuantize(dim=D, codebook_size=K, **options)
    layer = vqfast.VQLayer(K, D, codebook_dim=options.get("codebook_dim"))
    with pytest.raises(ValueError, match=f"state has .*{name}.*; want the names of zalandoresearch"):
        vqfast.convert_state_dict(theirs.state_dict(), layer)
