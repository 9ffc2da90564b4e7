"""What a network's code reads, so that a program can tell when it is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

State = dict[
    str, Any
]  # by path from the network: tensors, texts of plain values, and other objects themselves

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, range, slice)
_LONG = 1000  # containers of more entries count as they are, without their entries


def state_of(call: Callable[..., Tensor]) -> State:
    """Everything that a network can be seen to read.

    These are the parameters, buffers, submodules, modes and plain attributes of its modules; and what a
    function holds: the variables of its closure, defaults, arguments of a ``partial``, and global modules,
    tensors and numbers. What stands in lists, tuples and dictionaries is part of it.
    """
    return dict(_parts("", call, {}))


def differing(now: State, before: State) -> set[str]:
    """The paths at which two states differ."""
    return {
        path
        for path in now.keys() | before.keys()
        if path not in now or path not in before or not _same(now[path], before[path])
    }


def kept(state: State) -> State:
    """The state with copies of its tensors, which later writes into them don't change."""
    copies = {id(value): value.detach().clone() for value in state.values() if isinstance(value, Tensor)}
    return {path: copies.get(id(value), value) for path, value in state.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)
    return a is b or (isinstance(a, str) and isinstance(b, str) and a == b)


def _parts(path: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """The paths and values of a value's parts."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, _PLAIN):
        yield path, f"{type(value).__name__} {value!r}"
    elif id(value) in seen or getattr(type(value), "is_program", False):  # a program reads, and isn't read
        return
    else:
        seen[id(value)] = value  # kept, so that no other object gets its id
        inner = list(_inside(value))
        yield path, type(value) if inner else value
        for name, part in inner:
            yield from _parts(f"{path}.{name}", part, seen)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, by name."""
    if isinstance(value, nn.Module):
        yield from ((name, part) for name, part in vars(value).items() if not _is_container(part) or part)
    elif isinstance(value, Mapping):
        if len(value) <= _LONG:
            yield from ((repr(key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        if len(value) <= _LONG:
            yield from ((str(number), part) for number, part in enumerate(value))
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif isinstance(value, partial):
        yield from (("function", value.func), ("arguments", value.args), ("keywords", value.keywords))
    elif isinstance(value, FunctionType):
        if not (value.__module__ or "").startswith("torch."):
            yield from _held_by(value)
    else:  # an object of options, say
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            plain = (*_PLAIN, Tensor)
            yield from ((name, part) for name, part in attributes.items() if isinstance(part, plain))


def _held_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function reads beside its arguments."""
    yield "defaults", (function.__defaults__, function.__kwdefaults__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    for name in function.__code__.co_names:
        part = function.__globals__.get(name)
        if isinstance(part, (*_PLAIN, Tensor, nn.Module)) and name in function.__globals__:
            yield name, part


def _is_container(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple, set, frozenset))
