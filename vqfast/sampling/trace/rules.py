"""The table of rules: what ATen's operations do to values that depend on the codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RULES: dict[str, Callable[..., Any]] = {}  # (lowering, *arguments) -> value, by an operation's name
OF_SHAPE = [  # what depends on a tensor's shape alone
    name for what in ("zeros", "ones", "full", "empty") for name in (f"{what}_like", f"new_{what}")
]


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the rule of the operations of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
