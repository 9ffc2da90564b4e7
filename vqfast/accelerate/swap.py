"""How a module's search is exchanged in place: its class becomes a subclass with a few methods overridden.

Weights, hooks, name and ``isinstance`` stay. ``torch.compile`` guards on a module's class, so that code
compiled before is compiled again. Copies and pickles name the original class and are rebuilt fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

Fast = Callable[..., object]


class Swap(NamedTuple):
    """What is exchanged in a class.

    ``methods``: by name, ``fast(original, self, *args)``; ``original(self, *args)`` is at hand for what isn't
    searched. ``size``: ``(K, D)`` of a module. ``note``: which of its modes keep their own code, and why.
    ``refusal``: why not to, after all. ``plan``: what the methods find in ``self.vqfast_plan``.
    ``reported``: not where it is a part of another that is.
    """

    methods: dict[str, Fast]
    size: Callable[[nn.Module], tuple[int, int]]
    note: Callable[[nn.Module], str] = lambda module: ""
    refusal: str = ""
    plan: object = None
    reported: bool = True


class Accelerated:
    """Marks the classes that ``fast_class`` makes."""

    vqfast_origin: tuple[type, tuple[tuple[str, Fast], ...]]

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return (_rebuild, self.vqfast_origin, *state)


def _rebuild(*origin) -> nn.Module:
    fast = fast_class(*origin)
    return fast.__new__(fast)


def override(cls: type, name: str, fast: Fast) -> Fast:
    """``fast`` as a method in the place of ``cls.name``, with its signature."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return fast(original, self, *args, **kwargs)

    method.vqfast_fast = True
    return method


@functools.cache
def fast_class(cls: type, methods: tuple[tuple[str, Fast], ...]) -> type:
    """``cls`` with ``methods`` overridden."""
    body = {name: override(cls, name, fast) for name, fast in methods}
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Accelerated, cls), body | {"vqfast_origin": (cls, methods)})


def is_fast(cls: type, name: str) -> bool:
    """Whether a method is one of ours."""
    return hasattr(getattr(cls, name), "vqfast_fast")


def accelerate(module: nn.Module, swap: Swap) -> None:
    """Overrides the methods of this module, unless that is done."""
    if not all(is_fast(type(module), name) for name in swap.methods):
        module.__class__ = fast_class(type(module), tuple(swap.methods.items()))
        if swap.plan is not None:
            module.vqfast_plan = swap.plan


def restore(module: nn.Module) -> None:
    """Gives a module its class back."""
    if isinstance(module, Accelerated):
        module.__class__ = type(module).vqfast_origin[0]
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
