"""The user's network: which modules it uses, and whether it takes codes and returns what a draw needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def modules_of(call: Callable[..., Tensor]) -> list[nn.Module]:
    """The module that ``call`` is, or those that the function uses."""
    return [module for module in _held(call) if isinstance(module, nn.Module)]


def _held(call: Any) -> list[Any]:
    """What a call is, or holds."""
    if isinstance(call, nn.Module):
        return [call]
    if isinstance(call, partial):
        arguments = tree_leaves((call.args, call.keywords), is_leaf=lambda each: isinstance(each, nn.Module))
        return [*_held(call.func), *arguments]
    found: list[Any] = [getattr(call, "__self__", None)]
    function = getattr(call, "__func__", call)
    found += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if hasattr(function, "__code__"):
        found += [function.__globals__.get(name) for name in function.__code__.co_names]
    return tree_leaves(found, is_leaf=lambda each: isinstance(each, nn.Module))


def copied(call: Callable[..., Tensor], memo: dict[int, Any]) -> Callable[..., Tensor]:
    """A deep copy of a call, whose modules are copies too.

    Raises:
        TypeError: the call is a function that reads a module from a global variable, which stays the same.
    """
    if isinstance(call, partial):
        arguments = copy.deepcopy((call.args, call.keywords), memo)
        return partial(copied(call.func, memo), *arguments[0], **arguments[1])
    if not isinstance(call, FunctionType):
        return copy.deepcopy(call, memo)
    for name in call.__code__.co_names:
        if isinstance(call.__globals__.get(name), nn.Module):
            raise TypeError(
                f"call reads the global variable {name}; want an argument of partial, to be copied"
            )
    cells = tuple(CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in call.__closure__ or ())
    made = FunctionType(call.__code__, call.__globals__, call.__name__, call.__defaults__, cells or None)
    made.__kwdefaults__ = call.__kwdefaults__
    return made


@torch.no_grad()
def check_call(
    call: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    num_embeddings: int,
    num_classes: int | None,
    num_mixtures: int | None,
) -> None:
    """Checks that the network takes the inputs and returns logits, or the parameters of mixtures.

    Raises:
        TypeError: it doesn't return a tensor.
        ValueError: it fails, or its result has another shape.
    """
    try:
        result = call(*inputs.values())
    except Exception as error:
        ends: dict[str, int | None] = {"codes": num_embeddings, "labels": num_classes}
        given = ", ".join(
            f"{name} {tuple(value.shape)}" + (f" in 0..{end - 1}" if (end := ends.get(name)) else "")
            for name, value in inputs.items()
        )
        advice = ""
        for name, argument in (("codes", "num_embeddings"), ("labels", "num_classes")):
            if name in inputs and _works(call, inputs | {name: torch.zeros_like(inputs[name])}):
                advice = f"; it works if all {name} are 0: {argument} is {ends[name]}, want fewer"
        raise ValueError(f"call fails for {given}: {type(error).__name__}: {error}{advice}") from error
    if not isinstance(result, Tensor):
        raise TypeError(f"call returns a {type(result).__name__}; want a tensor of logits")
    batch, *shape = inputs["codes"].shape
    got = tuple(result.shape)
    if num_mixtures is not None:
        if got != (want := (batch, 3 * num_mixtures, *shape)):
            raise ValueError(f"the result has shape {got}; want (B, 3 * num_mixtures, *shape), here {want}")
        return
    if len(got) == 2 + len(shape) and got == (batch, got[1], *shape) and got[1] != num_embeddings:
        raise ValueError(
            f"num_embeddings is {num_embeddings}; want {got[1]}, the channels of the logits {got}"
        )
    if got != (batch, num_embeddings, *shape):
        want = (batch, num_embeddings, *shape)
        raise ValueError(f"the result has shape {got}; want (B, num_embeddings, *shape), here {want}")


def _works(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> bool:
    try:
        call(*inputs.values())
    except Exception:  # of the network, of any kind
        return False
    return True
