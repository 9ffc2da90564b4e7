"""Whole models, prefixes, arrays and errors of ``convert_state_dict``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vqfast

K, D = 16, 4
STILL = {"kmeans_init": False, "revive_below": 0.0}


class Model(nn.Module):
    """Two quantisers between other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        self.top = vqfast.VQLayer(K, D, decay=0.9, **STILL)
        self.bottoms = nn.ModuleList([vqfast.VQLayer(2 * K, D, decay=0.9, **STILL)])


def foreign_state() -> dict[str, torch.Tensor]:
    """Of such a model with quantisers of rosinality/vq-vae-2-pytorch, saved in DistributedDataParallel."""
    state = {f"module.encoder.{name}": value for name, value in nn.Linear(D, D).state_dict().items()}
    for path, size in (("top", K), ("bottoms.0", 2 * K)):
        state |= {f"module.{path}.{name}": torch.randn(D, size) for name in ("embed", "embed_avg")}
        state[f"module.{path}.cluster_size"] = torch.rand(size) + 1
    return state


def test_a_whole_model():
    state, model = foreign_state(), Model()
    converted = vqfast.convert_state_dict(state, model, prefix="module.")
    assert converted.keys() == model.state_dict().keys()
    assert all(tensor.is_contiguous() for tensor in converted.values())
    model.load_state_dict(converted)
    assert torch.equal(model.encoder.weight, state["module.encoder.weight"])
    assert torch.equal(model.top.codebook, state["module.top.embed"].T)
    assert torch.equal(model.bottoms[0].ema_counts, state["module.bottoms.0.cluster_size"])
    assert torch.equal(model.bottoms[0].ema_sums, state["module.bottoms.0.embed_avg"].T)


def test_one_layer_of_a_whole_model():
    state, layer = foreign_state(), vqfast.VQLayer(2 * K, D, **STILL)
    converted = vqfast.convert_state_dict(state, layer, prefix="module.bottoms.0.")
    assert converted.keys() == {"codebook"}  # learned by gradients, it has no averages
    assert torch.equal(converted["codebook"], state["module.bottoms.0.embed"].T)


@pytest.mark.parametrize("name", ["embeddings_vqvae", "embeddings_vqvae:0"])
def test_arrays(name):
    array = np.random.default_rng(0).random((D, K), dtype=np.float32)
    array.flags.writeable = False
    layer = vqfast.VQLayer(K, D, channel_dim=-1)
    layer.load_state_dict(vqfast.convert_state_dict({name: array}, layer))
    assert np.array_equal(layer.codebook.detach().numpy(), array.T)


def test_averages_that_have_seen_nothing_start_from_the_codebook():
    layer = vqfast.VQLayer(K, D, decay=0.9)
    state = {"embed": torch.randn(D, K), "cluster_size": torch.zeros(K), "embed_avg": torch.randn(D, K)}
    converted = vqfast.convert_state_dict(state, layer)
    assert converted.keys() == {"codebook"}
    layer.load_state_dict(converted)
    assert torch.equal(layer.ema_sums, state["embed"].T) and (layer.ema_counts == 1).all()


def stages(count: int) -> dict[str, torch.Tensor]:
    return {f"layers.{q}._codebook.embed": torch.randn(1, K, D) for q in range(count)}


LAYER = vqfast.VQLayer(K, D)
WEIGHT = {"embedding.weight": torch.randn(K, D)}


def residual(**options) -> vqfast.ResidualVQLayer:
    return vqfast.ResidualVQLayer(num_embeddings=K, embedding_dim=D, num_quantizers=3, **options)


@pytest.mark.parametrize(
    ("state", "module", "error"),
    [
        (WEIGHT, nn.Linear(2, 2), "module is a Linear without layers of vqfast; want at least one"),
        ({}, LAYER, "state lacks module's codebook; want all of them"),
        (
            {"embedding.weight": torch.randn(8, D)},
            LAYER,
            r"embedding.weight, which is codebook, .*\(8, 4\); want",
        ),
        (
            {**WEIGHT, "proj.weight": torch.ones(1)},
            LAYER,
            "state has proj.weight; want the names of zalando.*_ema_w",
        ),
        (
            {
                "a.quantize.embedding.weight": torch.ones(K, D),
                "b.layers.0._codebook.embed": torch.ones(1, K, D),
            },
            LAYER,
            r"There are codebooks at prefix='a.quantize.' or prefix='b.'$",
        ),
        (
            {**WEIGHT, "project_in.weight": torch.ones(2, D)},
            LAYER,
            "want none, as module has no projection.proj",
        ),
        (stages(2), residual(), "state lacks module's stages.2.codebook"),
        (
            stages(4),
            residual(),
            "state has layers.3._codebook.embed; want layers.N._codebook.embed, .* of 3 stages",
        ),
        (
            stages(3),
            residual(shared_codebook=True),
            "layers.1._codebook.embed unlike .*; want a shared codebook",
        ),
    ],
)
def test_errors(state, module, error):
    with pytest.raises(ValueError, match=error):
        vqfast.convert_state_dict(state, module)


def test_no_state():
    with pytest.raises(TypeError, match="state is a str; want a mapping of names to tensors or arrays"):
        vqfast.convert_state_dict("model.pt", LAYER)


def test_no_module():
    with pytest.raises(TypeError, match=r"module is a type; want a torch\.nn\.Module"):
        vqfast.convert_state_dict(WEIGHT, vqfast.VQLayer)
