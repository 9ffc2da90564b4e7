"""How type checkers see a call of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Forward = TypeVar("Forward")


def typed_as(forward: Forward) -> Callable[[Callable[..., Any]], Forward]:
    """Decorates ``__call__`` under TYPE_CHECKING, so that a call has the overloads of ``forward``.

    Without it, ``torch.nn.Module`` says that a call returns anything.
    """
    return lambda call: forward
