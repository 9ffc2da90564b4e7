"""How a module says what it was made with."""

from __future__ import annotations

import inspect

from torch import nn


def describe(kind: type[nn.Module], *modules: nn.Module, **values: object) -> str:
    """The sizes and the options that aren't their defaults, as the constructor of ``kind`` takes them.

    Args:
        modules: where the arguments are found as attributes; the first that has one counts.
        values: arguments that are no attributes.
    """
    parts = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype"):  # of the parameters, not of the module
            continue
        owners = [module for module in modules if hasattr(module, name)]
        value = values[name] if name in values else getattr(owners[0], name)
        if parameter.default is parameter.empty:
            parts.append(repr(value))
        elif value != parameter.default:
            parts.append(f"{name}={value!r}")
    return ", ".join(parts)
