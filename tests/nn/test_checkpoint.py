"""Gradient checkpointing around layers that learn in forward: as without it, gradients, state and draws."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqfast.nn import ResidualVQLayer, VQLayer

COMMON = {"revive_below": 1.5, "kmeans_init": True}
LAYERS = {
    "gradient": lambda: VQLayer(9, 6, kmeans_init=True),
    "gradient revival": lambda: VQLayer(9, 6, **COMMON),
    "ema": lambda: VQLayer(9, 6, decay=0.5),
    "all": lambda: VQLayer(9, 6, decay=0.5, **COMMON),
    "cosine heads": lambda: VQLayer(
        5, 6, decay=0.5, heads=2, separate_codebooks=True, metric="cosine", **COMMON
    ),
    "rotation": lambda: VQLayer(9, 6, codebook_dim=3, gradient="rotation", decay=0.5, **COMMON),
    "residual": lambda: ResidualVQLayer(9, 6, 3, decay=0.5, kmeans_init=True),
    "residual revival": lambda: ResidualVQLayer(9, 6, 3, quantize_dropout=True, **COMMON),
    "dropout": lambda: ResidualVQLayer(9, 6, 3, quantize_dropout=True),
    "shared": lambda: ResidualVQLayer(9, 6, 3, decay=0.5, shared_codebook=True, quantize_dropout=True),
}


class Model(nn.Module):
    """What draws after the layer has to draw the same again."""

    def __init__(self, vq: nn.Module) -> None:
        super().__init__()
        self.encoder, self.vq, self.decoder = nn.Linear(6, 6), vq, nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.vq(self.encoder(x), mask)
        return F.dropout(self.decoder(F.dropout(out.quantized))).square().sum() + out.loss


def plain(run, *args) -> Tensor:
    return run(*args)


def nested(run, *args) -> Tensor:
    inner = partial(checkpoint, run, use_reentrant=False)
    return checkpoint(inner, *args, use_reentrant=False)


WAYS = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "not reentrant": partial(checkpoint, use_reentrant=False),
    "to the end": partial(checkpoint, use_reentrant=False, early_stop=False),
    "nested": nested,
}


def train(model: Model, way, masked: bool) -> list[Tensor]:
    """Gradients and state after three steps of two passes each, the first of which is the last to go back."""
    torch.manual_seed(3)
    found = []
    for _ in range(3):
        model.zero_grad()
        inputs = [torch.randn(40, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        mask = torch.rand(40) < 0.7 if masked else None
        sum(way(model, x, mask) for x in inputs).backward()
        found += [x.grad for x in inputs] + [p.grad for p in model.parameters() if p.requires_grad]
    return [*found, *(value.clone() for value in model.state_dict().values())]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_checkpointed_steps_equal_steps_without_checkpoints(name, way, masked) -> None:
    torch.manual_seed(0)
    model = Model(LAYERS[name]()).double()
    twin = copy.deepcopy(model)
    for got, expected in zip(train(twin, way, masked), train(model, plain, masked), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("way", [WAYS["reentrant"], WAYS["not reentrant"]])
def test_a_graph_that_goes_back_twice_is_recomputed_twice(way) -> None:
    torch.manual_seed(0)
    model, x = Model(LAYERS["all"]()), torch.randn(40, 6, requires_grad=True)
    loss = way(model, x)
    loss.backward(retain_graph=True)
    state, once = copy.deepcopy(model.state_dict()), x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_is_kept_where_nothing_is_recomputed(monkeypatch) -> None:
    monkeypatch.setattr(VQLayer, "keep", None)
    model = Model(LAYERS["ema"]())
    model(torch.randn(40, 6)).backward()
    model.eval()
    checkpoint(model, torch.randn(40, 6, requires_grad=True), use_reentrant=False).backward()


class Again(torch.autograd.Function):
    """A checkpoint of somebody else's."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run, ctx.x = run, x.detach()
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            return None, torch.autograd.grad(ctx.run(x), x, grad)[0]


def test_learning_in_a_backward_pass_of_another_kind_is_refused() -> None:
    for vq in (VQLayer(9, 6, decay=0.9), ResidualVQLayer(9, 6, 2, quantize_dropout=True)):
        loss = Again.apply(Model(vq), torch.randn(40, 6, requires_grad=True))
        with pytest.raises(RuntimeError, match="Layer learns in forward and runs in a backward pass"):
            loss.backward()
        loss = Again.apply(Model(vq.eval()), torch.randn(40, 6, requires_grad=True))
        loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "residual"])
@pytest.mark.parametrize("outside", [False, True])
def test_a_compiled_layer_that_learns_refuses_to_be_recomputed(name, outside) -> None:
    torch.compiler.reset()
    model, x = Model(LAYERS[name]()), torch.randn(40, 6, requires_grad=True)
    model(x)  # k-means starts
    again = partial(checkpoint, use_reentrant=False)
    if outside:
        run = torch.compile(partial(again, model), backend="aot_eager")
    else:
        run = partial(again, torch.compile(model, backend="aot_eager"))
    with pytest.raises(RuntimeError, match="learns in forward and is recomputed"):
        run(x).backward()
