"""How a module says what it was made with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def arguments_of(kind: type[nn.Module], *modules: nn.Module, **values: object) -> dict[str, Any]:
    """The arguments that the constructor of ``kind`` takes, but for ``device`` and ``dtype``.

    Args:
        modules: where the arguments are found as attributes; the first that has one counts.
        values: arguments that are no attributes.
    """
    arguments = dict(values)
    for name in inspect.signature(kind).parameters.keys() - values.keys() - {"device", "dtype"}:
        arguments[name] = getattr(next(module for module in modules if hasattr(module, name)), name)
    return {name: arguments[name] for name in inspect.signature(kind).parameters if name in arguments}


def describe(kind: type[nn.Module], arguments: Mapping[str, object]) -> str:
    """The sizes among ``arguments``, and the options that aren't their defaults, as ``kind`` takes them."""
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    parts = []
    for name, value in arguments.items():
        if defaults[name] is inspect.Parameter.empty:
            parts.append(repr(value))
        elif value != defaults[name]:
            parts.append(f"{name}={value!r}")
    return ", ".join(parts)
