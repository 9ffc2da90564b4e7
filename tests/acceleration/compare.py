"""A module against its accelerated copy, and nearest codes in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vqfast
from vqfast.acceleration import replacement
from vqfast.ops import registry


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """By differences in float64: ``x (..., D)``, ``codes (K, D)`` -> ``(...)``."""
    rows = x.double().reshape(-1, 1, x.shape[-1])
    return (rows - codes.double()).square().sum(-1).argmin(-1).view(x.shape[:-1])


def tensors(tree: object) -> list[Tensor]:
    """The tensors in what a model returns."""
    if isinstance(tree, Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def step(module: nn.Module, call: Callable, z: Tensor) -> list[Tensor]:
    """What one call returns, its gradients, and the state after it."""
    torch.manual_seed(1)
    z = z.clone().requires_grad_(z.is_floating_point())
    outputs = tensors(call(module, z))
    weighted = [(x.flatten() * torch.arange(x.numel()).cos()).sum() for x in outputs if x.requires_grad]
    inputs = [z, *(weight for weight in module.parameters() if weight.requires_grad)]
    grads = torch.autograd.grad(sum(weighted), inputs, allow_unused=True) if weighted else []
    missing = torch.zeros(())
    state = [tensor.clone() for tensor in module.state_dict().values()]
    return [*outputs, *(missing if grad is None else grad for grad in grads), *state]


def searches(call: Callable, *args) -> tuple[object, int]:
    """What ``call(*args)`` returns, and how many searches of vqfast it ran."""
    found = []
    backend = registry.backend

    def counted(*args, **options):
        found.append(args)
        return backend(*args, **options)

    registry.backend = counted
    try:
        returned = call(*args)
    finally:
        registry.backend = backend
    return returned, len(found)


def claims(module: nn.Module, call: Callable[[nn.Module], object]) -> tuple[vqfast.Report, list[str]]:
    """The report, and the paths in it that are reported as accelerated and aren't.

    With only one of them accelerated at a time, ``call`` reaches no search of vqfast.
    """
    fast = copy.deepcopy(module)
    report = vqfast.accelerate(fast)
    empty = []
    for entry in report.accelerated:
        alone = copy.deepcopy(fast)
        for path, part in alone.named_modules():
            if path != entry.path and not path.startswith(f"{entry.path}.".lstrip(".")):
                replacement.restore(part)
        if not searches(call, alone)[1]:
            empty.append(entry.path)
    return report, empty


def same(
    module: nn.Module,
    batches: list[Tensor],
    call: Callable = lambda module, z: module(z),
    modes: tuple[bool, ...] = (True, False),
) -> nn.Module:
    """Checks that a module and its accelerated copy do the same, batch after batch, in both modes.

    The copy must search with vqfast in ``modes`` (training or not), and only in those. It is returned.
    """
    fast = copy.deepcopy(module)
    vqfast.accelerate(fast)
    assert list(fast.state_dict()) == list(module.state_dict())
    for z in batches:
        for training in (True, False):
            fast.train(training)
            module.train(training)
            ours, searched = searches(step, fast, call, z)
            assert (searched > 0) == (training in modes)
            torch.testing.assert_close(ours, step(module, call, z), rtol=1e-4, atol=1e-5)
    return fast


def assert_same_curve(
    slow: nn.Module, loss: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...], rel: float = 1e-4
) -> None:
    """A module and its accelerated copy have equal losses, ``loss(returned, z)``, in ten training steps."""
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    assert _losses(fast, loss, shape) == pytest.approx(_losses(slow, loss, shape), rel=rel)


def _losses(module: nn.Module, loss: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...]) -> list[float]:
    """A scale before the module learns too."""
    torch.manual_seed(2)
    scale = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([scale, *module.parameters()], lr=0.01)
    losses = []
    for _ in range(10):
        z = scale * torch.randn(shape)
        value = loss(module.train()(z), z)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
