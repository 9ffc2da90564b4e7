"""How a module's search is exchanged in place: its class becomes a subclass with a few methods overridden.

Weights, hooks, name and ``isinstance`` stay. ``torch.compile`` guards on a module's class, so that code
compiled before is compiled again. Copies and pickles name the original class and are rebuilt fast.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, NamedTuple, SupportsIndex

from torch import nn

Fast = Callable[..., Any]


class Swap(NamedTuple):
    """What is exchanged in a class.

    ``methods``: by name, ``fast(original, self, *args)``; ``original(self, *args)`` is at hand for what isn't
    searched. ``size``: ``(K, D)`` of a module. ``note``: which of its modes keep their own code, and why.
    ``refusal``: why a module keeps all of it, if it does. ``plan``: what the methods find in
    ``self.vqfast_plan``. ``reported``: not where it is a part of another that is.

    What the class must have, whose versions differ (see ``misfit``): ``needs``, the attributes, methods and
    parameters that ``methods`` rely on; ``via``, the methods that call ``methods``; ``part``, the child that
    searches for it, by its name and the full name of its class, which must be exchanged too.
    ``leaves``: the children, by their paths, that it calls for what we don't search, and why.
    """

    methods: Mapping[str, Fast]
    size: Callable[[Any], tuple[int, int]]
    needs: tuple[str, ...] = ()
    via: tuple[str, ...] = ()
    part: tuple[str, str] | None = None
    note: Callable[[Any], str] = lambda module: ""
    refusal: Callable[[Any], str] = lambda module: ""
    leaves: Callable[[Any], dict[str, str]] = lambda module: {}
    plan: object = None
    reported: bool = True


def misfit(cls: type, swap: Swap) -> str:
    """Why a swap isn't for this version of a class, or an empty string."""
    name = f"this version's {cls.__name__}"
    known = _names(cls)
    if missing := [need for need in (*swap.methods, *swap.needs, *swap.via) if need not in known]:
        return f"{name} has no {', '.join(missing)}"
    for method, fast in swap.methods.items():
        if not _takes_the_same(fast, getattr(cls, method)):
            return f"{name}.{method} takes other arguments"
    for method in swap.via:
        if swap.methods.keys().isdisjoint(_mentioned(_code(getattr(cls, method)))):
            return f"{name}.{method} doesn't call {' or '.join(swap.methods)}"
    return ""


def _takes_the_same(fast: Fast, method: Fast) -> bool:
    """Whether ``fast`` names, after ``original`` and ``self``, the method's parameters; its first if it has
    ``*args``.
    """
    ours = list(inspect.signature(fast).parameters.values())[2:]
    named = [parameter.name for parameter in ours if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    theirs = list(inspect.signature(method).parameters)[1:]
    return named == (theirs if len(named) == len(ours) else theirs[: len(named)])


@functools.cache
def _names(cls: type) -> frozenset[str]:
    """The attributes of a class and all names in its code, so those of attributes of its instances too."""
    members = [
        member for base in cls.__mro__ if base not in nn.Module.__mro__ for member in vars(base).values()
    ]
    return frozenset(dir(cls)).union(*(_mentioned(_code(member)) for member in members))


def _code(member: object) -> CodeType | None:
    """Code of a method as it was written, also where it is decorated, overridden by us or a property's."""
    function = inspect.unwrap(member.fget if isinstance(member, property) else member)  # type: ignore[arg-type]
    return getattr(function, "__code__", None)


def _mentioned(code: CodeType | None) -> Iterator[str]:
    """The names in a function's code, strings included (a buffer is registered by one)."""
    if code is None:
        return
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _mentioned(constant)


class Accelerated:
    """Marks the classes that ``fast_class`` makes."""

    vqfast_origin: tuple[type, tuple[tuple[str, Fast], ...]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        reduced = super().__reduce_ex__(protocol)
        return (_rebuild, self.vqfast_origin, *reduced[2:])


def _rebuild(cls: type, methods: tuple[tuple[str, Fast], ...]) -> object:
    return object.__new__(fast_class(cls, methods))


def override(cls: type, name: str, fast: Fast) -> Fast:
    """``fast`` as a method in the place of ``cls.name``, with its signature."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self: object, *args: Any, **kwargs: Any) -> Any:
        return fast(original, self, *args, **kwargs)

    vars(method)["vqfast_fast"] = True
    return method


@functools.cache
def fast_class(cls: type, methods: tuple[tuple[str, Fast], ...]) -> type:
    """``cls`` with ``methods`` overridden."""
    body: dict[str, object] = {name: override(cls, name, fast) for name, fast in methods}
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Accelerated, cls), body | {"vqfast_origin": (cls, methods)})


def is_fast(cls: type, name: str) -> bool:
    """Whether a method is one of ours."""
    return hasattr(getattr(cls, name), "vqfast_fast")


def accelerate(module: nn.Module, swap: Swap) -> None:
    """Overrides the methods of this module, unless that is done."""
    if not all(is_fast(type(module), name) for name in swap.methods):
        cls: type = type(module)
        module.__class__ = fast_class(cls, tuple(swap.methods.items()))
        if swap.plan is not None:
            vars(module)["vqfast_plan"] = swap.plan


def restore(module: nn.Module) -> None:
    """Gives a module its class back."""
    if isinstance(module, Accelerated):
        module.__class__ = module.vqfast_origin[0]
        for name in [name for name in vars(module) if name.startswith("vqfast_")]:
            delattr(module, name)


def patch(cls: type, swap: Swap) -> None:
    """Overrides the methods in the class itself, unless that is done."""
    for name, fast in swap.methods.items():
        if not is_fast(cls, name):
            setattr(cls, name, override(cls, name, fast))


def unpatch(cls: type, swap: Swap) -> None:
    """Takes ``patch`` back."""
    for name in swap.methods:
        if is_fast(cls, name):
            setattr(cls, name, getattr(cls, name).__wrapped__)
