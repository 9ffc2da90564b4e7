"""Every argument of every public constructor refuses values of a wrong type or out of range, by its name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from vqfast.models import VQVAE, HierarchicalVQVAE, LayerOptions
from vqfast.nn import MaskedConv1d, MaskedConv2d, ResidualVQLayer, VQLayer
from vqfast.priors import PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet

VALID: dict[type, dict[str, Any]] = {
    VQLayer: {"num_embeddings": 8, "embedding_dim": 4},
    ResidualVQLayer: {"num_embeddings": 8, "embedding_dim": 4, "num_quantizers": 2},
    MaskedConv1d: {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
    MaskedConv2d: {"in_channels": 2, "out_channels": 4, "kernel_size": 3},
    VQVAE: {"hidden_channels": 8, "num_embeddings": 8},
    HierarchicalVQVAE: {"hidden_channels": 8, "num_embeddings": 8},
    PixelCNN: {"num_embeddings": 8, "channels": 4, "num_layers": 1, "first_kernel_size": 3},
    ResidualPixelCNN: {"num_embeddings": 8, "channels": 4, "first_kernel_size": 3},
    PixelSNAIL: {"num_embeddings": 8, "channels": 4, "num_heads": 1, "first_kernel_size": 3},
    WaveNet: {"num_embeddings": 8, "channels": 4, "num_layers": 2},
}
# sizes that have a default; all other arguments with a default are keywords
DEFAULT_SIZES: dict[type, tuple[str, ...]] = {kind: () for kind in VALID} | {
    VQVAE: ("architecture",),
    HierarchicalVQVAE: ("architecture",),
    PixelCNN: ("num_embeddings", "channels", "num_layers"),
    ResidualPixelCNN: ("num_embeddings", "channels", "num_residual_blocks", "num_layers"),
    PixelSNAIL: ("num_embeddings", "channels", "num_blocks", "num_layers"),
    WaveNet: ("num_embeddings", "channels", "num_layers"),
}
NAN, INFINITY = float("nan"), float("inf")
HUGE = 10**400  # too large for a float and for torch's sizes
VALUES = [None, "x", "", True, 1.5, -1, 0, 1, NAN, INFINITY, HUGE, [], [1], {}, object(), torch.zeros(2)]
# what is documented as valid, by the name of the argument; sizes are positive integers
DOCUMENTED: dict[str, list[Any]] = {
    "beta": [0, 1, 1.5],
    "decay": [None],
    "eps": [1, 1.5],
    "channel_dim": [-1, 0, 1],
    "metric": [],
    "separate_codebooks": [True],
    "codebook_dim": [None, 1],
    "kmeans_init": [True],
    "revive_below": [0, 1, 1.5],
    "dropout": [0],
    "gradient": [],
    "learnable": [True],
    "shared_codebook": [True],
    "quantize_dropout": [True],
    "kernel_size": [],  # mask type A hides the only position of a kernel of one
    "first_kernel_size": [],
    "mask_type": [],
    "stack": [],
    "bias": [True],
    "activation": [],
    "architecture": [],
    "frame_by_frame": [],  # of three axes, which the values here have not
    "ndim": [1],
    "hidden_channels": [None, 1],
    "num_downsamplings": [None, 1],
    "VQVAE.num_residual_blocks": [None, 0, 1],
    "num_mixtures": [None, 0, 1],
    "WaveNet.num_mixtures": [None, 1],
    "VQVAE.num_embeddings": [None, 1],
    "PixelCNN.num_quantizers": [None, 1],
    "VQVAE.embedding_dim": [None, 1],
    "HierarchicalVQVAE.num_residual_blocks": [None, 0, 1],
    "HierarchicalVQVAE.num_embeddings": [None, 1],
    "HierarchicalVQVAE.embedding_dim": [None, 1],
    "residual_channels": [None, 1],
    "num_levels": [None],
    "level_dropout": [0],
    "image_size": [None],
    "loss_weight": [0, 1, 1.5],
    "quantizer": [None],
    "num_heads": [0, 1],
    "num_classes": [None, 1],
    "condition_channels": [0, 1],
    "device": [None],
    "dtype": [None],
}
ELSEWHERE: dict[str, list[Any]] = {"device": [0, 1]}  # which exist on some machines


def arguments(kind: type) -> list[str]:
    """The names of all arguments, those that a typed dict declares too."""
    names = [*inspect.signature(kind).parameters]
    return [*names[:-1], *LayerOptions.__annotations__] if names[-1] == "options" else names


def cases() -> list[Any]:
    names = [(kind, name) for kind in VALID for name in arguments(kind)]
    return [pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind, name in names]


def among(value: object, values: list[Any]) -> bool:
    return any(type(value) is type(other) and value == other for other in values)


@pytest.mark.parametrize("kind, name", cases())
def test_a_wrong_value_is_named_and_a_documented_one_builds(kind: type, name: str) -> None:
    for value in VALUES:
        arguments = {**VALID[kind], name: value}
        if among(value, ELSEWHERE.get(name, [])):
            continue
        if among(value, DOCUMENTED.get(f"{kind.__name__}.{name}", DOCUMENTED.get(name, [1]))):
            kind(**arguments)
            continue
        with pytest.raises((TypeError, ValueError)) as error:
            kind(**arguments)
        message = str(error.value)
        assert message.startswith(f"{name} is {value!r}; want "), message
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(value, (list, dict, torch.Tensor)):
            assert error.type is TypeError, message
        elif name in ("num_embeddings", "embedding_dim", "kernel_size", "heads", "dilation"):
            assert error.type is (ValueError if type(value) is int else TypeError), message
        elif name in ("beta", "eps", "decay", "revive_below"):
            assert error.type is (ValueError if number else TypeError), message


@pytest.mark.parametrize("kind", VALID)
def test_options_are_keywords_of_one_order_and_say_where_last(kind: type) -> None:
    parameters = [*inspect.signature(kind).parameters.values()]
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        assert parameters.pop().annotation == "Unpack[LayerOptions]"
    assert [parameter.name for parameter in parameters[-2:]] == ["device", "dtype"]
    for parameter in parameters:
        positional = parameter.default is parameter.empty or parameter.name in DEFAULT_SIZES[kind]
        assert parameter.kind is (
            parameter.POSITIONAL_OR_KEYWORD if positional else parameter.KEYWORD_ONLY
        ), parameter
        assert parameter.annotation is not parameter.empty


def test_models_pass_on_every_option_of_the_layer() -> None:
    layer = inspect.signature(VQLayer).parameters
    own = {"num_embeddings", "embedding_dim", "channel_dim", "device", "dtype"}
    assert [*LayerOptions.__annotations__] == [name for name in layer if name not in own]
    for name, annotation in LayerOptions.__annotations__.items():
        assert annotation.__forward_arg__ == layer[name].annotation


def test_both_quantisers_have_the_same_options_in_the_same_order() -> None:
    plain, residual = (inspect.signature(kind).parameters for kind in (VQLayer, ResidualVQLayer))
    assert [name for name in residual if name in plain] == [name for name in plain if name in residual]
    assert set(plain) - set(residual) == {"heads", "separate_codebooks"}
    assert set(residual) - set(plain) == {"num_quantizers", "shared_codebook", "quantize_dropout"}
    for name in set(plain) & set(residual):
        assert plain[name].default == residual[name].default


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: VQLayer(8, 4).freeze("no"), "frozen is 'no'; want True or False"),
        (lambda: ResidualVQLayer(8, 4, 2).freeze(1), "frozen is 1; want True or False"),
        (lambda: VQVAE.named([1]), "name is .1.; want 'paper'"),
        (lambda: VQVAE("keras", num_residual_blocks="x"), "num_residual_blocks is 'x'; want"),
        (lambda: VQLayer(8, 4, 0.25), "positional"),
        (lambda: ResidualVQLayer(2, 8, 4, 0.25), "positional"),
        (lambda: MaskedConv2d("a", 4, 3), "in_channels is 'a'; want a"),
        (lambda: VQLayer(8, 4)(torch.zeros(2, 4), None, True), "positional"),
        (lambda: VQLayer(8, 4).set_codebook([1]), "codebook is a list; want a tensor"),
        (lambda: VQLayer(8, 4)(torch.zeros(2, 4), [True]), "mask is a list; want a tensor"),
        (lambda: VQLayer(8, 4).decode(torch.zeros(2).long(), [True]), "mask is a list; want a tensor"),
        (lambda: ResidualVQLayer(8, 4, 2).decode([0], [True]), "indices is a list; want a tensor"),
        (lambda: ResidualVQLayer(8, 4, 2).perplexity([0]), "indices is a list; want a tensor"),
    ],
)
def test_other_arguments_of_a_wrong_type(call, message) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_perplexity_of_other_stages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"indices has shape \(2, 3\); want \(B, \*spatial, 1..2 stages\)"):
        ResidualVQLayer(8, 4, 2).perplexity(torch.zeros(2, 3).long())
