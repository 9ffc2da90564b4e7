"""How methods of a module are replaced in place: its class becomes a subclass that overrides them.

Weights, hooks, name and ``isinstance`` stay. ``torch.compile`` guards on a module's class, so code that was
compiled before is compiled again. Copies and pickles refer to the original class and override it again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, NamedTuple, SupportsIndex

from torch import nn

Method = Callable[..., Any]


class Replacement(NamedTuple):
    """The methods of a quantiser's class that vqfast replaces, and what it needs of that class.

    The later fields hold a version of the class to what the methods rely on; see ``mismatch``.

    Attributes:
        methods: by name, ``method(original, self, *args)``. It calls ``original(self, *args)`` for an input
            that it doesn't handle.
        size: ``(K, D)`` of a module.
        needs: the attributes, methods and parameters that ``methods`` use.
        callers: the methods of the class that must call one of ``methods``.
        part: the child that searches in the module's place, as its name and the full name of its class.
            It is replaced too.
        note: which modes of a module keep their own code, and why; else empty.
        refusal: why a whole module keeps its own code; else empty.
        excluded: the children, by path, that are left alone although their class is known, and why.
        behaviours: for a class that was probed, what ``methods`` find in ``self.vqfast_behaviours``.
        reported: whether the report lists the module. A part of a listed module isn't listed.
    """

    methods: Mapping[str, Method]
    size: Callable[[Any], tuple[int, int]]
    needs: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    part: tuple[str, str] | None = None
    note: Callable[[Any], str] = lambda module: ""
    refusal: Callable[[Any], str] = lambda module: ""
    excluded: Callable[[Any], dict[str, str]] = lambda module: {}
    behaviours: object = None
    reported: bool = True


def mismatch(cls: type, replacement: Replacement) -> str:
    """Why ``replacement`` doesn't fit this version of a class; empty if it does."""
    name = f"this version's {cls.__name__}"
    known = _names(cls)
    needs = (*replacement.methods, *replacement.needs, *replacement.callers)
    if missing := [need for need in needs if need not in known]:
        return f"{name} has no {', '.join(missing)}"
    for method, new in replacement.methods.items():
        if not _same_parameters(new, getattr(cls, method)):
            return f"{name}.{method} takes other arguments"
    for caller in replacement.callers:
        if replacement.methods.keys().isdisjoint(_mentioned(_code(getattr(cls, caller)))):
            return f"{name}.{caller} doesn't call {' or '.join(replacement.methods)}"
    return ""


def _same_parameters(new: Method, old: Method) -> bool:
    """Whether ``new`` names, after ``original`` and ``self``, the parameters of ``old``.

    If it takes ``*args``, it may name only the first ones.
    """
    parameters = list(inspect.signature(new).parameters.values())[2:]
    named = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    wanted = list(inspect.signature(old).parameters)[1:]
    return named == (wanted if len(named) == len(parameters) else wanted[: len(named)])


@functools.cache
def _names(cls: type) -> frozenset[str]:
    """The attributes of a class, and every name in its code: attributes of its instances are among those."""
    members = [
        member for base in cls.__mro__ if base not in nn.Module.__mro__ for member in vars(base).values()
    ]
    return frozenset(dir(cls)).union(*(_mentioned(_code(member)) for member in members))


def _code(member: object) -> CodeType | None:
    """The original code of a method or property, also where it is decorated or overridden by vqfast."""
    function = inspect.unwrap(member.fget if isinstance(member, property) else member)  # type: ignore[arg-type]
    return getattr(function, "__code__", None)


def _mentioned(code: CodeType | None) -> Iterator[str]:
    """The names in a function's code, with its strings: a buffer is registered under a string."""
    if code is None:
        return
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _mentioned(constant)


class Accelerated:
    """Marks the classes that ``accelerated_class`` makes."""

    vqfast_origin: tuple[type, tuple[tuple[str, Method], ...]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        reduced = super().__reduce_ex__(protocol)
        return (_rebuild, self.vqfast_origin, *reduced[2:])


def _rebuild(cls: type, methods: tuple[tuple[str, Method], ...]) -> object:
    return object.__new__(accelerated_class(cls, methods))


def override(cls: type, name: str, new: Method) -> Method:
    """``new`` as a method in the place of ``cls.name``, with its signature."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self: object, *args: Any, **kwargs: Any) -> Any:
        return new(original, self, *args, **kwargs)

    vars(method)["vqfast_replaced"] = True
    return method


@functools.cache
def accelerated_class(cls: type, methods: tuple[tuple[str, Method], ...]) -> type:
    """``cls`` with ``methods`` overridden."""
    body: dict[str, object] = {name: override(cls, name, new) for name, new in methods}
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Accelerated, cls), body | {"vqfast_origin": (cls, methods)})


def is_replaced(cls: type, name: str) -> bool:
    """Whether a method of a class is one of vqfast."""
    return hasattr(getattr(cls, name), "vqfast_replaced")


def accelerate(module: nn.Module, replacement: Replacement) -> None:
    """Overrides the methods of this module, unless they already are."""
    if not all(is_replaced(type(module), name) for name in replacement.methods):
        cls: type = type(module)
        module.__class__ = accelerated_class(cls, tuple(replacement.methods.items()))
        if replacement.behaviours is not None:
            vars(module)["vqfast_behaviours"] = replacement.behaviours


def restore(module: nn.Module) -> None:
    """Gives a module its class back."""
    if isinstance(module, Accelerated):
        module.__class__ = module.vqfast_origin[0]
        for name in [name for name in vars(module) if name.startswith("vqfast_")]:
            delattr(module, name)


def patch(cls: type, replacement: Replacement) -> None:
    """Overrides the methods in the class itself, unless they already are."""
    for name, new in replacement.methods.items():
        if not is_replaced(cls, name):
            setattr(cls, name, override(cls, name, new))


def unpatch(cls: type, replacement: Replacement) -> None:
    """Undoes ``patch``."""
    for name in replacement.methods:
        if is_replaced(cls, name):
            setattr(cls, name, getattr(cls, name).__wrapped__)
