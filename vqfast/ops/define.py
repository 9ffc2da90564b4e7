"""How an op and its gradient are registered: as by ``torch.library.custom_op``, in a fraction of its time.

Calls go through the dispatcher all the same, so that whatever watches them (torch.compile, modes, transforms,
subclasses, profilers) sees the op. What is left out are checks that ``opcheck`` makes once, in tests, and
readings of the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("vqfast", "FRAGMENT")
_FUNCTIONS: dict[OpOverload, Callable] = {}
_UNWATCHED = [DispatchKeySet(DispatchKey.CPU), DispatchKeySet(DispatchKey.CUDA)]


def define(function: Callable) -> OpOverload:
    """``vqfast::<its name>`` on any device; ``function`` changes no argument and returns none, nor a view."""
    name = function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    op = getattr(torch.ops.vqfast, name).default
    _FUNCTIONS[op] = function
    return op


in_functorch = torch._C._are_functorch_transforms_active  # whether a transform of ``torch.func`` is at work


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation may be at work."""
    return in_functorch() or forward_ad._current_level >= 0


def behind_transforms(tensor: Tensor) -> Tensor:
    """The tensor that ``torch.func`` has wrapped, with the dimensions that ``vmap`` hides."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def register_batched(op: OpOverload, definition: Callable) -> None:
    """Under ``vmap`` the op is ``definition``, PyTorch code that gives the same results."""
    _LIBRARY.impl(op._opname, definition, "FuncTorchBatched")


def register_autograd(
    op: OpOverload, backward: Callable, setup_context: Callable, definition: Callable
) -> None:
    """As ``torch.library.register_autograd``; ``ctx.needs_input_grad`` has one more at its end.

    Where the op is transformed, ``definition`` stands in its place: PyTorch code that gives the same results,
    whose derivatives of any order and mode are right, and so need not be written here.
    """
    function = _FUNCTIONS[op]
    register_batched(op, definition)

    def below(keyset, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            keyset = keyset & torch._C._after_ADInplaceOrView_keyset
            return function(*inputs) if keyset in _UNWATCHED else op.redispatch(keyset, *inputs)

    def forward(ctx, *args):
        *inputs, keyset = args
        output = below(keyset, *inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
    }
    # the name that torch.library gives it: profilers show it
    name = f"GeneratedBackwardFor_vqfast_{op._opname}_default"
    function_class: Any = type(name, (torch.autograd.Function,), methods)
    differentiable = function_class.apply

    def kernel(keyset, *inputs):
        if transformed():
            return definition(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return differentiable(*inputs, keyset)
        return below(keyset, *inputs)

    _LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)
