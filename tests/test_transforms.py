"""Every op, layer and prior under ``torch.func`` and in forward mode, beside plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import vqfast
from vqfast import functional
from vqfast.nn import masked_conv
from vqfast.prior import pixelcnn
from vqfast.prior.base import CausalPrior

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # torch itself, in forward mode
]
SAMPLES = 3


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def codes(*shape: int) -> Tensor:
    return torch.randint(5, shape)


def straight(z: Tensor, book: Tensor, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A quantiser as everyone writes it."""
    flat = z.movedim(dim, -1)
    distances = (flat.detach().unsqueeze(-2) - book.detach()).square().sum(-1)
    picked = book[distances.argmin(-1)].movedim(-1, dim)
    losses = (z.detach() - picked).square().mean(), (z - picked.detach()).square().mean()
    return z + (picked - z).detach(), *losses


def straight_stages(z: Tensor, books: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rest, losses = z, []
    for book in books:
        quantized, *both = straight(rest, book)
        losses.append(both)
        rest = rest - quantized.detach()
    codebook, commitment = (torch.stack(each) for each in zip(*losses, strict=True))
    return z + ((z - rest) - z).detach(), codebook, commitment


def convolved(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor, mask_type: str) -> Tensor:
    """The convolution, by a weight that is multiplied by its mask."""
    mask = torch.zeros(9, dtype=x.dtype)
    mask[: 5 if mask_type == "B" else 4] = 1
    return F.conv2d(x, weight * mask.view(3, 3), bias, padding=1) + extra


def gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def distance(x: Tensor, book: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - book).square().sum(-1).sqrt().amin(-1)


def conv(mask_type: str, activation: str) -> tuple[Callable, Callable, list[Tensor]]:
    """Of ours, its twin, and arguments."""
    after = {"none": lambda x: x, "relu": F.relu, "gate": gated}[activation]
    channels = 2 if activation == "gate" else 4

    def ours(x, weight, bias, extra, residual):
        options = {"mask_type": mask_type, "activation": activation}
        return functional.masked_conv2d(x, weight, bias, extra=extra, residual=residual, **options)

    def twin(x, weight, bias, extra, residual):
        return after(convolved(x, weight, bias, extra, mask_type)) + residual

    return (
        ours,
        twin,
        [draw(1, 3, 4, 3), draw(4, 3, 3, 3), draw(4), draw(1, 4, 1, 1), draw(1, channels, 4, 3)],
    )


def conv1d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(x, weight * torch.tensor([1.0, 1, 0], dtype=x.dtype), padding=1)


OPS = {
    "quantize": (
        lambda z, book: (lambda out: (out[0], out[2], out[3]))(functional.quantize(z, book)),
        straight,
        [draw(2, 3, 4), draw(5, 3)],
    ),
    "quantize_last": (
        lambda z, book: (lambda out: (out[0], out[2] - out[3]))(functional.quantize(z, book, -1)),
        lambda z, book: (lambda out: (out[0], out[1] - out[2]))(straight(z, book, -1)),
        [draw(2, 4, 3), draw(5, 3)],
    ),
    "residual_quantize": (
        lambda z, books: (lambda out: (out[0], out[2], out[3]))(functional.residual_quantize(z, books)),
        straight_stages,
        [draw(2, 3, 4), draw(2, 5, 3)],
    ),
    "nearest_code": (
        lambda x, book: functional.nearest_code(x, book, return_distance=True)[1],
        distance,
        [draw(6, 3), draw(5, 3)],
    ),
    "gate": (
        functional.gate,
        lambda x, extra: gated(x + extra),
        [draw(1, 4, 3, 2), draw(1, 4, 1, 1)],
    ),
    "masked_conv1d": (
        lambda x, weight: functional.masked_conv1d(x, weight, mask_type="B"),
        conv1d,
        [draw(1, 2, 5), draw(3, 2, 3)],
    ),
    **{
        f"masked_conv2d_{mask_type}_{activation}": conv(mask_type, activation)
        for mask_type, activation in (("A", "none"), ("B", "relu"), ("B", "gate"))
    },
}


@pytest.fixture(params=OPS)
def op(request) -> tuple[Callable, Callable, list[Tensor]]:
    return OPS[request.param]


def outputs(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def total(function: Callable) -> Callable:
    """A scalar of it whose every derivative says something."""
    return lambda *given: sum((value + value.square() / 2).sum() for value in outputs(function(*given)))


def numbers(arguments: list) -> tuple[int, ...]:
    return tuple(range(len(arguments)))


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians(op, jacobian) -> None:
    ours, twin, given = op
    torch.testing.assert_close(ours(*given), twin(*given))
    got, want = (jacobian(each, numbers(given))(*given) for each in (ours, twin))
    torch.testing.assert_close(got, want)


def test_products_with_tangents_and_cotangents(op) -> None:
    ours, twin, given = op
    tangents = tuple(map(torch.randn_like, given))
    torch.testing.assert_close(jvp(ours, tuple(given), tangents), jvp(twin, tuple(given), tangents))
    (got, pull), (_, twin_pull) = (vjp(each, *given) for each in (ours, twin))
    cotangents = tuple(map(torch.randn_like, outputs(got)))
    cotangents = cotangents[0] if isinstance(got, Tensor) else cotangents
    torch.testing.assert_close(pull(cotangents), twin_pull(cotangents))


def test_second_derivatives(op) -> None:
    ours, twin, given = op
    got, want = (hessian(total(each), numbers(given))(*given) for each in (ours, twin))
    torch.testing.assert_close(got, want)
    for inner, outer in ((jacfwd, jacfwd), (jacfwd, jacrev), (jacrev, jacrev)):
        nested = outer(inner(total(ours), numbers(given)), numbers(given))(*given)
        torch.testing.assert_close(nested, want)


def dual_tangents(function: Callable, given: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, given, tangents)
        return [forward_ad.unpack_dual(value).tangent for value in outputs(function(*duals))]


def test_dual_tensors(op) -> None:
    ours, twin, given = op
    tangents = list(map(torch.randn_like, given))
    got, want = (dual_tangents(each, given, tangents) for each in (ours, twin))
    torch.testing.assert_close(got, want)


def test_dual_tensors_through_a_gradient(op) -> None:
    """Forward mode over the tape, of which the op's own backward is a part."""
    ours, twin, given = op
    tangents = list(map(torch.randn_like, given))

    def gradients(function: Callable) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in given]
        with forward_ad.dual_level():
            loss = total(function)(*map(forward_ad.make_dual, leaves, tangents))
            found = torch.autograd.grad(loss, leaves)
            return [forward_ad.unpack_dual(value).tangent for value in found]

    torch.testing.assert_close(gradients(ours), gradients(twin))


def test_tangents_of_cotangents(op) -> None:
    """The tape is made first, and run with dual or with batched cotangents."""
    ours, twin, given = op

    def backward(function: Callable) -> list[Tensor]:
        torch.manual_seed(0)
        leaves = [value.clone().requires_grad_() for value in given]
        values = outputs(function(*leaves))
        many = [torch.randn(2, *value.shape, dtype=value.dtype) for value in values]
        found = list(torch.autograd.grad(values, leaves, many, retain_graph=True, is_grads_batched=True))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*each) for each in many]
            pulled = torch.autograd.grad(values, leaves, duals, retain_graph=True)
            found += [forward_ad.unpack_dual(value).tangent for value in pulled]
        return found

    torch.testing.assert_close(backward(ours), backward(twin))


def stacked(given: list[Tensor], dims: tuple[int | None, ...]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Arguments with a dimension of samples, and those of each sample."""
    many = [
        value if dim is None else torch.randn(SAMPLES, *value.shape, dtype=value.dtype).movedim(0, dim)
        for value, dim in zip(given, dims, strict=True)
    ]
    each = [
        [v if d is None else v.select(d, i) for v, d in zip(many, dims, strict=True)] for i in range(SAMPLES)
    ]
    return many, each


def layouts(given: list[Tensor]) -> list[tuple[int | None, ...]]:
    """All with samples, the first only, all but the first."""
    rest = len(given) - 1
    return [(0,) * len(given), (1, *[None] * rest), (None, *[1] * rest)]


@pytest.mark.parametrize("layout", range(3))
def test_vmap_of_the_op_and_of_its_gradients(op, layout) -> None:
    ours, twin, given = op
    dims = layouts(given)[layout]
    many, each = stacked(given, dims)
    for function, want in (
        (ours, twin),
        (grad(total(ours), numbers(given)), grad(total(twin), numbers(given))),
    ):
        samples = [outputs(want(*sample)) for sample in each]
        got = outputs(vmap(function, dims)(*many))
        torch.testing.assert_close(got, tuple(map(torch.stack, zip(*samples, strict=True))))


def test_gradient_of_vmap(op) -> None:
    ours, twin, given = op
    many, each = stacked(given, (0,) * len(given))
    got = grad(lambda *given: total(vmap(ours))(*given), numbers(given))(*many)
    want = [grad(total(twin), numbers(given))(*sample) for sample in each]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*want, strict=True))))
    leaves = [value.clone().requires_grad_() for value in many]
    torch.testing.assert_close(torch.autograd.grad(total(vmap(ours))(*leaves), leaves), got)


def test_double_backward(op) -> None:
    ours, twin, given = op

    def twice(function: Callable) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in given]
        first = torch.autograd.grad(total(function)(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), leaves)

    torch.testing.assert_close(twice(ours), twice(twin))


# Layers and models, whose twins are themselves with plain PyTorch in the place of the ops


def plain_quantize(z_e: Tensor, codebook: Tensor, channel_dim: int = 1, statistics: bool = False):
    quantized, *losses = straight(z_e, codebook, channel_dim)
    rows = z_e.movedim(channel_dim, -1).unsqueeze(-2)
    indices = (rows - codebook).square().sum(-1).argmin(-1)
    return functional.Quantized(quantized, indices, *losses, indices, indices)


def plain_residual_quantize(z_e: Tensor, codebooks: Tensor, channel_dim: int = 1, statistics: bool = False):
    quantized, *losses = straight_stages(z_e.movedim(channel_dim, 1), codebooks)
    nothing = torch.zeros(len(codebooks), 0, dtype=torch.int64)
    return functional.Quantized(quantized.movedim(1, channel_dim), nothing, *losses, nothing, nothing)


def plain_conv(x, weight, bias, mask_type, stack, dilation, activation, extra, residual) -> Tensor:
    """By a whole kernel, of which ``weight`` fills what it sees."""
    taps, (ay, ax) = functional.visible_taps(weight.shape[2:], mask_type, stack)
    kh, kw = weight.shape[2:]
    mask = (torch.arange(kh * kw) < taps).to(x.dtype).view(kh, kw)
    pad = [ax * dilation, max(0, kw - 1 - ax) * dilation, ay * dilation, max(0, kh - 1 - ay) * dilation]
    x = F.pad(x, pad)[..., : x.shape[2] + (kh - 1) * dilation, : x.shape[3] + (kw - 1) * dilation]
    out = F.conv2d(x, weight * mask, bias, dilation=dilation) + (0 if extra is None else extra)
    out = {"none": lambda x: x, "relu": F.relu, "gate": gated}[activation](out)
    return out if residual is None else out + residual


def plain_embed(codes, weight, bias, taps, anchor, dilation) -> Tensor:
    picked = F.one_hot(codes, weight.shape[1]).movedim(-1, 1).to(weight.dtype)
    return plain_conv(picked, weight, bias, "A", "full", dilation[0], "none", None, None)


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


LAYER = {"num_embeddings": 5, "embedding_dim": 4}
SHOWN = torch.tensor([[True, True, False], [True, False, True]])
MODELS = {
    "vq": lambda: (vqfast.VQLayer(**LAYER), draw(2, 4, 3)),
    "vq_cosine": lambda: (vqfast.VQLayer(**LAYER, metric="cosine"), draw(2, 4, 3)),
    "vq_rotation": lambda: (vqfast.VQLayer(**LAYER, gradient="rotation"), draw(2, 4, 3)),
    "vq_heads": lambda: (vqfast.VQLayer(**LAYER, heads=2, separate_codebooks=True), draw(2, 4, 3)),
    "vq_projected": lambda: (vqfast.VQLayer(**LAYER, codebook_dim=2, heads=2), draw(2, 4, 3)),
    "vq_ema": lambda: (vqfast.VQLayer(**LAYER, decay=0.9, revive_below=1).eval(), draw(2, 4, 3)),
    "residual": lambda: (vqfast.ResidualVQLayer(3, **LAYER), draw(2, 4, 3)),
    "residual_cosine": lambda: (vqfast.ResidualVQLayer(2, **LAYER, metric="cosine"), draw(2, 4, 3)),
    "residual_rotation": lambda: (
        vqfast.ResidualVQLayer(2, **LAYER, shared_codebook=True, gradient="rotation"),
        draw(2, 4, 3),
    ),
    "vqvae": lambda: (
        vqfast.VQVAE("paper", 1, 2, 4, 1, 1, **LAYER),
        draw(1, 1, 4, 4),
    ),
    "pixelcnn": lambda: (
        vqfast.PixelCNN(5, 4, 2, num_classes=2, condition_channels=2, first_kernel_size=3, head_channels=4),
        codes(1, 3, 3),
    ),
    "residual_pixelcnn": lambda: (vqfast.ResidualPixelCNN(5, 4, 1, 1, first_kernel_size=3), codes(1, 3, 3)),
    "wavenet": lambda: (vqfast.WaveNet(5, 4, 2), codes(1, 6)),
}


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
@pytest.mark.parametrize("kind", [vqfast.VQLayer, partial(vqfast.ResidualVQLayer, 2)])
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
