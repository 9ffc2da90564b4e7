"""What modules share: masked indices, representation, new starts, devices and dtypes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.nn import layers, test_residual_vq
from vqfast.models import VQVAE, HierarchicalVQVAE
from vqfast.nn import MaskedConv1d, MaskedConv2d, ResidualVQLayer, VQLayer

LAYERS = [(VQLayer, (9, 6), options) for options in layers.OPTIONS.values()]
LAYERS += [(ResidualVQLayer, (9, 6, 3), options) for options in test_residual_vq.OPTIONS.values()]
EVERY = pytest.mark.parametrize("kind, sizes, options", LAYERS)
MODULES = pytest.mark.parametrize(
    "make",
    [
        lambda **where: VQLayer(
            9, 6, decay=0.9, heads=2, codebook_dim=4, kmeans_init=True, revive_below=0.1, **where
        ),
        lambda **where: VQLayer(9, 6, **where),
        lambda **where: ResidualVQLayer(9, 6, 3, decay=0.9, codebook_dim=4, kmeans_init=True, **where),
        lambda **where: MaskedConv1d(3, 4, 3, **where),
        lambda **where: MaskedConv2d(3, 4, 3, **where),
        lambda **where: VQVAE(hidden_channels=8, num_embeddings=9, embedding_dim=4, decay=0.9, **where),
        lambda **where: VQVAE("keras", hidden_channels=8, num_embeddings=9, **where),
        lambda **where: VQVAE(
            "ruseckas", hidden_channels=8, num_downsamplings=2, num_embeddings=9, embedding_dim=4, **where
        ),
        lambda **where: HierarchicalVQVAE(hidden_channels=8, num_embeddings=9, decay=0.9, **where),
        lambda **where: HierarchicalVQVAE("ruseckas-hierarchical", hidden_channels=32, **where),
    ],
)


def every_layer(kind, sizes, options, **others):
    layer = kind(*sizes, **options, **others).eval()
    for stage in getattr(layer, "stages", [layer]):
        stage.set_codebook(torch.randn_like(stage.codebook))
    return layer


@EVERY
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_masked_indices_decode_to_zeros(kind, sizes, options, channel_dim) -> None:
    layer = every_layer(kind, sizes, options, channel_dim=channel_dim)
    z_e, mask = torch.randn((5, 6, 7) if channel_dim == 1 else (5, 7, 6)), torch.rand(5, 7) < 0.6
    indices = layer.encode(z_e, mask)
    decoded = layer.decode(indices)
    torch.testing.assert_close(decoded, layer(z_e, mask).quantized)
    assert not decoded.movedim(channel_dim, -1)[~mask].any()
    assert torch.equal(decoded, layer.decode(indices, mask))
    anything = torch.where(indices < 0, 10**6, indices)
    assert torch.equal(decoded, layer.decode(anything, mask))
    for wrong in (-2, 9):
        indices[0, 0] = wrong
        with pytest.raises(ValueError, match=r"indices has values .*; want -1\.\.8"):
            layer.decode(indices)


def test_a_masked_head_adds_nothing_to_the_projection() -> None:
    vq = every_layer(VQLayer, (9, 6), {"heads": 2, "codebook_dim": 4})
    parts = vq.projection.project_out.weight.unflatten(1, (2, 4))
    expected = vq.codebook[5] @ parts[:, 1].T + vq.projection.project_out.bias
    torch.testing.assert_close(vq.decode(torch.tensor([[-1, 5]]))[0], expected)


def test_masked_indices_of_a_model_decode_as_zero_vectors() -> None:
    model = VQVAE(hidden_channels=8, num_embeddings=9, embedding_dim=4).eval()
    indices = torch.tensor([[[3, -1], [-1, 0]]])
    vectors = model.vq.codebook[indices.clamp(min=0)] * (indices >= 0).unsqueeze(-1)
    torch.testing.assert_close(model.decode(indices), model.decoder(vectors.movedim(-1, 1)))


@EVERY
def test_perplexity_leaves_masked_indices_out(kind, sizes, options) -> None:
    layer, z_e = every_layer(kind, sizes, options), torch.randn(5, 6, 7)
    mask = torch.rand(5, 7) < 0.6
    indices = layer.encode(z_e, mask)
    perplexity = layer.perplexity(indices)
    assert torch.equal(perplexity, layer.perplexity(indices[mask]))
    assert perplexity.shape == ((3,) if kind is ResidualVQLayer else ())
    assert (perplexity > 1).all() and (perplexity < 9).all()


@EVERY
def test_representation_says_the_options_and_makes_the_layer_again(kind, sizes, options) -> None:
    layer = kind(*sizes, **options)
    said = layer.extra_repr()
    assert said.startswith(", ".join(map(str, sizes)))
    assert said.count("=") == len(options)
    again = eval(f"{kind.__name__}({said})")
    assert again.extra_repr() == said
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in layer.state_dict().items()
    }


def test_representation_of_other_options_and_modules() -> None:
    vq = VQLayer(9, 6, beta=1.0, eps=1e-3, channel_dim=-1, kmeans_init=False, learnable=False)
    assert vq.extra_repr() == "9, 6, beta=1.0, eps=0.001, channel_dim=-1, kmeans_init=False, learnable=False"
    rvq = ResidualVQLayer(9, 6, 3, beta=1, quantize_dropout=True)
    rvq.freeze()
    assert rvq.extra_repr() == "9, 6, 3, beta=1, learnable=False, quantize_dropout=True"
    conv = MaskedConv1d(3, 4, 5, mask_type="B", dilation=2, bias=False, activation="gate")
    assert repr(conv) == ("MaskedConv1d(3, 4, 5, mask_type='B', dilation=2, bias=False, activation='gate')")


@EVERY
def test_reset_parameters_starts_everything_anew(kind, sizes, options) -> None:
    layer = kind(*sizes, kmeans_init=True, **options)
    layer(torch.randn(40, 6))
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        constant = "ema_counts" in name or "initialised" in name
        assert not torch.equal(value, before[name]) or (constant and (value == 1).all()), name
    assert all(stage.starts for stage in getattr(layer, "stages", [layer]))


@pytest.mark.parametrize("shared_codebook", [False, True])
def test_set_codebooks(shared_codebook) -> None:
    rvq = ResidualVQLayer(9, 6, 3, decay=0.9, shared_codebook=shared_codebook)
    codebooks = torch.randn(3, 9, 6)
    if shared_codebook:
        with pytest.raises(ValueError, match="codebooks has stages that differ; want equal ones"):
            rvq.set_codebooks(codebooks)
        codebooks = codebooks[:1].expand(3, -1, -1)
    rvq.set_codebooks(codebooks)
    assert torch.equal(rvq.codebooks, codebooks)
    twin = ResidualVQLayer(9, 6, 3, shared_codebook=shared_codebook, dtype=torch.float64)
    twin.set_codebooks(rvq.codebooks)
    assert torch.equal(twin.codebooks, codebooks.double())
    for wrong, error, message in (
        ([1], TypeError, "codebooks is a list; want a tensor"),
        (codebooks[:2], ValueError, r"codebooks has shape \(2, 9, 6\); want \(3, 9, 6\)"),
        (codebooks.long(), TypeError, "codebooks has dtype torch.int64"),
        (codebooks.to("meta"), ValueError, "codebooks is on meta; want the device of the layer, cpu"),
    ):
        with pytest.raises(error, match=message):
            rvq.set_codebooks(wrong)


@EVERY
def test_tensors_on_another_device_are_named(kind, sizes, options) -> None:
    layer = kind(*sizes, kmeans_init=True, device="meta", **options)
    z_e, mask = torch.randn(5, 6, 7), torch.ones(5, 7, dtype=torch.bool)
    indices = torch.zeros(5, 7, dtype=torch.int64)
    if kind is ResidualVQLayer or "heads" in options:
        indices = indices.unsqueeze(-1).repeat(1, 1, options.get("heads", 3))
    calls = [
        lambda: layer(z_e),
        lambda: layer(z_e, mask),
        lambda: layer.encode(z_e),
        lambda: layer(z_e.to("meta"), mask),
        lambda: layer.decode(indices),
        lambda: layer.decode(indices.to("meta"), mask),
    ]
    calls.append(lambda: layer.eval()(z_e))
    if kind is VQLayer:
        calls.append(lambda: layer.set_codebook(torch.zeros(layer.codebook.shape)))
    for call in calls:
        with pytest.raises(ValueError, match=r"is on (cpu; want .*meta|meta; want .*cpu)"):
            call()


def test_inputs_of_models_and_convolutions_on_another_device_are_named() -> None:
    model = VQVAE(hidden_channels=8, num_embeddings=9, embedding_dim=4, device="meta")
    conv = MaskedConv2d(3, 4, 3, device="meta")
    for call, given in (
        (model, torch.zeros(1, 3, 8, 8)),
        (model.encode, torch.zeros(1, 3, 8, 8)),
        (model.decode, torch.zeros(1, 2, 2, dtype=torch.int64)),
        (conv, torch.zeros(1, 3, 8, 8)),
        (conv.embed, torch.zeros(1, 8, 8, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"is on (cpu; want .*meta|meta; want .*cpu)"):
            call(given)


@MODULES
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", torch.device("meta")])
def test_device_and_dtype_hold_for_all_parameters_and_buffers(make, device, dtype) -> None:
    module = make(device=device, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for name, value in module.state_dict().items():
        assert value.device.type == torch.device(device).type, name
        if "initialised" in name or "num_batches_tracked" in name:
            continue
        assert value.dtype == (wide if "ema_" in name else dtype), name
    plain = make()
    assert {value.dtype for value in plain.parameters()} <= {torch.float32}
    with torch.device("meta"):
        assert {value.device.type for value in make(device="cpu").state_dict().values()} == {"cpu"}


@MODULES
def test_a_module_of_float64_is_that_of_float32_converted(make) -> None:
    module = make(dtype=torch.float64)
    twin = make().double()
    assert {name: (v.shape, v.dtype) for name, v in module.state_dict().items() if "initial" not in name} == {
        name: (v.shape, v.dtype) for name, v in twin.state_dict().items() if "initial" not in name
    }
    assert isinstance(module, nn.Module)
