"""Registers ops and their gradients as ``torch.library.custom_op`` does, with a fraction of its time a call.

Calls go through the dispatcher, so that torch.compile, modes, transforms, subclasses and profilers see the
op; ``straight`` leaves it out where none of these is there. Left out are the checks of every call, which
``opcheck`` makes once, in the tests, and lookups in the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("vqfast", "FRAGMENT")
_FUNCTIONS: dict[OpOverload[..., Any], Callable[..., Any]] = {}
_DIFFERENTIABLE: dict[OpOverload[..., Any], Callable[..., Any]] = {}
_PLAIN = frozenset({Tensor, torch.nn.Parameter, int, bool, str, type(None)})  # list: of plain values
_UNWATCHED = [DispatchKeySet(DispatchKey.CPU), DispatchKeySet(DispatchKey.CUDA)]

P = ParamSpec("P")
T = TypeVar("T")


def define(function: Callable[P, T]) -> OpOverload[P, T]:
    """Registers ``function`` as the op ``vqfast::<its name>`` on any device.

    It changes no argument and returns neither an argument nor a view of one.
    """
    name = function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    op: OpOverload[P, T] = getattr(torch.ops.vqfast, name).default
    _FUNCTIONS[op] = function
    return op


in_functorch = torch._C._are_functorch_transforms_active  # whether a transform of ``torch.func`` is active


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation may be active."""
    return in_functorch() or forward_ad._current_level >= 0


def _plain(value: object) -> bool:
    """Whether an argument is a number, a tensor that is no subclass, or a list of these."""
    return all(map(_plain, value)) if type(value) is list else type(value) in _PLAIN


def straight(op: OpOverload[P, T]) -> Callable[P, T]:
    """The op for calls by position, as its function, or the autograd function of that, where the dispatcher
    would do no more than call it. That saves most of the time of a call with little to compute.
    """
    function = _FUNCTIONS[op]

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_function_stack()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._get_tracing_state() is not None
            or _profiler_enabled()
            or transformed()
            or kwargs
            or not all(map(_plain, args))
        ):
            return op(*args, **kwargs)
        differentiable = _DIFFERENTIABLE.get(op)
        tensors = [value for value in args if isinstance(value, Tensor)]
        if differentiable and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return differentiable(*args, None)
        return function(*args)

    return call


def behind_transforms(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of ``torch.func``, with the dimensions that ``vmap`` hides."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def register_batched(op: OpOverload[..., Any], definition: Callable[..., Any]) -> None:
    """Replaces the op by ``definition`` under ``vmap``: PyTorch code that gives the same results."""
    _LIBRARY.impl(op._opname, definition, "FuncTorchBatched")


def register_autograd(
    op: OpOverload[..., Any],
    backward: Callable[..., tuple[Tensor | None, ...]],
    setup_context: Callable[..., None],
    definition: Callable[..., Any],
) -> None:
    """As ``torch.library.register_autograd``; ``ctx.needs_input_grad`` has an extra last entry, for the key
    set.

    Transforms of the op see ``definition`` in its place: PyTorch code that gives the same results, so that
    PyTorch derives it to any order, in either mode.
    """
    function = _FUNCTIONS[op]
    register_batched(op, definition)

    def below(keyset: DispatchKeySet, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            keyset = keyset & torch._C._after_ADInplaceOrView_keyset
            return function(*inputs) if keyset in _UNWATCHED else op.redispatch(keyset, *inputs)

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, keyset = args
        output = function(*inputs) if keyset is None else below(keyset, *inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
    }
    # profilers show this name, which torch.library would give too
    name = f"GeneratedBackwardFor_vqfast_{op._opname}_default"
    function_class: Any = type(name, (torch.autograd.Function,), methods)
    _DIFFERENTIABLE[op] = differentiable = function_class.apply

    def kernel(keyset: DispatchKeySet, *inputs: Any) -> Any:
        if transformed():
            return definition(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return differentiable(*inputs, keyset)
        return below(keyset, *inputs)

    _LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)
