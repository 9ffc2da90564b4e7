"""Layers and priors under ``torch.func``, beside themselves with plain PyTorch in the place of the ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import vqfast
from tests.transforms.model_cases import MODELS
from tests.transforms.plain import (
    SAMPLES,
    codes,
    gated,
    numbers,
    outputs,
    plain_conv,
    plain_embed,
    plain_quantize,
    plain_residual_quantize,
    total,
)
from vqfast import functional
from vqfast.nn import masked_conv
from vqfast.priors import pixelcnn
from vqfast.priors.base import CausalPrior

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # torch itself, in forward mode
]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Calls a function while the ops are plain PyTorch."""

    def call(function: Callable):
        with monkeypatch.context() as patch:
            patch.setattr(functional, "quantize", plain_quantize)
            patch.setattr(functional, "residual_quantize", plain_residual_quantize)
            patch.setattr(vqfast.MaskedConv2d, "_conv", staticmethod(plain_conv))
            patch.setattr(pixelcnn, "gate", lambda x, extra: gated(x if extra is None else x + extra))
            patch.setattr(masked_conv, "embed", plain_embed)
            return function()

    return call


def call(model: nn.Module) -> Callable:
    """What is differentiated: of weights and an input, outputs that are differentiable by both."""

    def function(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
        given = (x,)
        if isinstance(model, CausalPrior) and model.num_classes:
            given = x, torch.ones(1, dtype=torch.int64), torch.ones(1, 2, 3, 3, dtype=torch.float64)
        found = outputs(functional_call(model, weights, given))
        return tuple(value for value in found if value.is_floating_point())

    return function


@pytest.fixture(params=MODELS)
def model(request) -> tuple[Callable, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    module, x = MODELS[request.param]()
    module = module.double()
    weights = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    return call(module), weights, x


def test_models_forward_and_reverse(model, plainly) -> None:
    function, weights, x = model
    tangents = {name: torch.randn_like(value) for name, value in weights.items()}
    if x.is_floating_point():
        primals, tangents = (weights, x), (tangents, torch.randn_like(x))
    else:
        primals, tangents = (weights,), (tangents,)
        function = partial(lambda of, weights: of(weights, x), function)
    scalar = total(function)
    argnums = numbers(primals)

    def everything() -> list:
        return [
            jvp(function, primals, tangents),
            grad(scalar, argnums)(*primals),
            jacrev(scalar, argnums)(*primals),
            jvp(grad(scalar, argnums), primals, tangents),
            vjp(grad(scalar, argnums), *primals)[1](tangents),
        ]

    torch.testing.assert_close(everything(), plainly(everything))


def test_gradients_of_each_sample(model, plainly) -> None:
    function, weights, x = model
    many = x.repeat(SAMPLES, *[1] * x.ndim)
    many = many + torch.randn_like(many) if x.is_floating_point() else (many + codes(*many.shape)) % 5
    got = vmap(grad(total(function)), (None, 0))(weights, many)
    each = plainly(lambda: [grad(total(function))(weights, sample) for sample in many])
    torch.testing.assert_close(got, {name: torch.stack([g[name] for g in each]) for name in weights})
    values = plainly(lambda: [function(weights, sample) for sample in many])
    torch.testing.assert_close(
        vmap(function, (None, 0))(weights, many), tuple(map(torch.stack, zip(*values, strict=True)))
    )


TRANSFORMS = {
    "grad": lambda function, z: grad(function)(z),
    "jvp": lambda function, z: jvp(function, (z,), (z,)),
    "vmap": lambda function, z: vmap(function)(torch.stack([z, z])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("options", [{"decay": 0.9}, {"revive_below": 1.0}, {"kmeans_init": True}])
@pytest.mark.parametrize("kind", [vqfast.VQLayer, partial(vqfast.ResidualVQLayer, num_quantizers=2)])
def test_a_codebook_does_not_learn_under_transforms(kind, options, transform) -> None:
    layer, z = kind(5, 4, **options), torch.randn(2, 4, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"call eval\(\) or freeze\(\) first"):
        TRANSFORMS[transform](lambda z: layer(z).loss, z)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    TRANSFORMS[transform](lambda z: layer.eval()(z).loss, z)


def test_a_codebook_learns_between_dual_levels_without_a_tangent() -> None:
    options = {"decay": 0.9, "revive_below": 0.5}
    layer, twin, z = vqfast.VQLayer(5, 4, **options), vqfast.VQLayer(5, 4, **options), torch.randn(2, 4, 3)
    twin.load_state_dict(layer.state_dict())
    with torch.random.fork_rng():
        twin(z)
    with forward_ad.dual_level():
        quantized = layer(forward_ad.make_dual(z, torch.ones_like(z))).quantized
        assert torch.equal(forward_ad.unpack_dual(quantized).tangent, torch.ones_like(z))
        assert all(forward_ad.unpack_dual(value).tangent is None for value in layer.state_dict().values())
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    "layer",
    [vqfast.VQLayer(5, 4), vqfast.VQLayer(5, 4, decay=0.9, heads=2), vqfast.ResidualVQLayer(5, 4, 2)],
)
def test_vmap_of_codes_and_masks(layer) -> None:
    layer, z, shown = layer.eval(), torch.randn(SAMPLES, 2, 4, 3), torch.rand(SAMPLES, 2, 3) > 0.3

    def everything(z: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return layer.decode(layer.encode(z)), layer.decode(layer.encode(z, mask), mask), *layer(z, mask)

    each = [everything(*sample) for sample in zip(z, shown, strict=True)]
    torch.testing.assert_close(vmap(everything)(z, shown), tuple(map(torch.stack, zip(*each, strict=True))))
