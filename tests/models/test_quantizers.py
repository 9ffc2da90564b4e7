"""Every option of the layer, and any quantiser, in a VQ-VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqfast.models import VQVAE
from vqfast.nn import ResidualVQLayer, VQLayer
from vqfast.pipeline import Run, Training, load_model, save_model, train_vqvae

OTHER: dict[str, Any] = {
    "beta": 0.5,
    "decay": 0.9,
    "eps": 1e-3,
    "metric": "cosine",
    "heads": 2,
    "separate_codebooks": True,
    "codebook_dim": 3,
    "kmeans_init": False,
    "revive_below": 0.5,
    "gradient": "rotation",
    "learnable": False,
}
X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small(**options: Any) -> VQVAE:
    torch.manual_seed(0)
    if "quantizer" not in options:
        options = {"num_embeddings": 5, "embedding_dim": 4, **options}
    return VQVAE(in_channels=1, hidden_channels=4, num_downsamplings=1, **options)


@pytest.mark.parametrize("options", [*({name: OTHER[name]} for name in OTHER), OTHER])
def test_options_reach_the_layer_and_come_back_from_a_file(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small(**options)
    layer = VQLayer(5, 4, **options)
    assert model.vq.extra_repr() == layer.extra_repr() and layer.extra_repr() != "5, 4"
    assert options.items() <= model.config.items()
    out = model(X)
    assert out.reconstruction.shape == X.shape
    save_model(tmp_path, "vqvae", model)
    found = load_model(tmp_path, "vqvae")
    assert found.config == model.config and found.vq.extra_repr() == layer.extra_repr()
    model.eval()
    assert torch.equal(found.encode(X), model.encode(X))
    torch.testing.assert_close(found.decode(found.encode(X)), model(X).reconstruction)


def test_a_frozen_layer_comes_back_frozen(tmp_path: Path) -> None:
    model = small(decay=0.9)
    model.vq.freeze()
    save_model(tmp_path, "vqvae", model)
    assert not load_model(tmp_path, "vqvae").vq.learnable


@pytest.mark.parametrize(
    "quantizer",
    [
        VQLayer(5, 4, decay=0.9, kmeans_init=True),
        ResidualVQLayer(5, 4, 3, decay=0.9, codebook_dim=2),
        ResidualVQLayer(5, 4, 3, shared_codebook=True, quantize_dropout=True),
    ],
    ids=["vq", "residual", "shared"],
)
def test_a_layer_of_vqfast_as_quantizer(tmp_path: Path, quantizer: nn.Module) -> None:
    model = small(quantizer=quantizer)
    assert model.quantizers == (quantizer,)
    out = model(X)
    again = VQVAE(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and type(again.vq) is type(quantizer)
    save_model(tmp_path, "vqvae", model.eval())
    found = load_model(tmp_path, "vqvae")
    indices = model.encode(X)
    assert indices.shape == out.indices.shape and torch.equal(found.encode(X), indices)
    torch.testing.assert_close(found.decode(indices), model(X).reconstruction)
    (level,) = model.encode_levels(X)
    assert torch.equal(model.decode_levels([level]), model.decode(indices))


class Rounding(nn.Module):
    """A quantiser of a user: each of two channels is rounded to 0 or 1."""

    num_embeddings, embedding_dim = 4, 2

    def encode(self, z_e: Tensor) -> Tensor:
        bits = (z_e > 0.5).long()
        return 2 * bits[:, 0] + bits[:, 1]

    def decode(self, indices: Tensor) -> Tensor:
        return torch.stack([indices // 2, indices % 2], 1).float()

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = self.encode(z_e)
        quantized = self.decode(indices)
        return z_e + (quantized - z_e).detach(), indices, (z_e - quantized).square().mean()


def test_a_quantizer_of_the_user(tmp_path: Path) -> None:
    model = small(quantizer=Rounding(), loss_weight=0.5)
    out = model(X)
    z_e = model.encoder(X)
    torch.testing.assert_close(out.loss, 0.5 * (z_e - z_e.gt(0.5).float()).square().mean())
    torch.testing.assert_close(model.decode(out.indices), out.reconstruction)
    assert torch.equal(model.encode(X), out.indices)
    assert VQVAE(**model.config).vq is model.vq
    with pytest.raises(ValueError, match=r"quantizer is a Rounding, .* can't hold; want a vqfast layer"):
        save_model(tmp_path, "vqvae", model)
    assert not list(tmp_path.iterdir())
    run = Run(tmp_path / "run", create=True)
    options = {"hidden_channels": 4, "num_downsamplings": 1, "quantizer": Rounding()}
    with pytest.raises(ValueError, match=r"quantizer is a Rounding, which a file can't hold"):
        train_vqvae(run, "digits", reading={"size": 8}, model_options=options, training=Training(steps=2))
    assert not list(run.folder.glob("vqvae*"))


def test_the_layer_of_vector_quantize_pytorch_as_quantizer() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")

    class Adapter(nn.Module):
        num_embeddings, embedding_dim = 5, 4

        def __init__(self, vq: nn.Module) -> None:
            super().__init__()
            self.vq = vq

        def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.vq(z_e)

        def encode(self, z_e: Tensor) -> Tensor:
            return self.vq(z_e, freeze_codebook=True)[1]

        def decode(self, indices: Tensor) -> Tensor:
            return self.vq.codebook[indices].movedim(-1, 1)

    theirs = library.VectorQuantize(dim=4, codebook_size=5, accept_image_fmap=True, decay=0.9)
    model = small(quantizer=Adapter(theirs)).eval()
    out = model(X)
    assert torch.equal(model.encode(X), out.indices)
    torch.testing.assert_close(model.decode(out.indices), out.reconstruction)
    ours = VQLayer(5, 4, decay=0.9).eval()
    ours.set_codebook(theirs.codebook)
    model.vq = ours
    assert torch.equal(model.encode(X), out.indices)
    torch.testing.assert_close(model(X).reconstruction, out.reconstruction)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"quantizer": nn.Linear(4, 4)}, TypeError, r"quantizer is Linear\(.*; want a module with num_emb"),
        ({"quantizer": {"class": "Linear"}}, TypeError, "quantizer is {'class': 'Linear'}; want a module"),
        ({"quantizer": {"class": "VQLayer", "num_embeddings": 0, "embedding_dim": 4}}, ValueError, "is 0"),
        ({"quantizer": VQLayer(5, 4, channel_dim=-1)}, ValueError, "quantizer has channel_dim -1; want 1"),
        ({"quantizer": VQLayer(5, 4), "decay": 0.9}, ValueError, "decay is 0.9; want it in the quantizer"),
        ({"quantizer": VQLayer(5, 4), "num_embeddings": 5}, ValueError, "num_embeddings is 5; want it in"),
        ({"channel_dim": -1}, TypeError, "got an unexpected argument 'channel_dim'"),
        ({"colour": "red"}, TypeError, "got an unexpected argument 'colour'"),
        ({"embedding_dim": 5, "heads": 2}, ValueError, "embedding_dim is 5; want a multiple of heads = 2"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(**options)


def test_a_quantizer_replaces_the_configurations_layer() -> None:
    model = VQVAE.named("ruseckas", hidden_channels=32, quantizer=ResidualVQLayer(8, 4, 2))
    assert model.config["quantizer"]["class"] == "ResidualVQLayer" and model.loss_weight == 0.1
    assert model(torch.rand(2, 3, 32, 32)).indices.shape == (2, 1, 1, 2)
    for shape in [(1, 4), (1, 1, 1, 1, 2)]:
        with pytest.raises(ValueError, match=r"want \(B, H, W\), heads or stages last, not empty|stages\)"):
            model.decode(torch.zeros(shape, dtype=torch.int64))


def test_levels_of_one() -> None:
    model = small()
    assert model.code_shapes((8, 8)) == [(4, 4)] and model.strides == (2,)
    for wrong in (model.encode(X), [], [model.encode(X)] * 2):
        with pytest.raises(ValueError, match=r"indices has \d levels; want a list of 1"):
            model.decode_levels(wrong)
