"""The table of rules: what each ATen operation does to values that depend on the codes.

To add an operation, decorate its rule with ``@rule("name")``. The rule gets the ``Context`` and the
operation's arguments, tensors as ``Sum`` or ``Known``, and returns a ``Sum``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Rule = TypeVar("Rule", bound=Callable[..., Any])
RULES: dict[str, Callable[..., Any]] = {}  # by the name of an operation's overload packet
OF_SHAPE = [  # operations whose result depends on a tensor's shape, dtype and device alone
    name for what in ("zeros", "ones", "full", "empty") for name in (f"{what}_like", f"new_{what}")
]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of the operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
