"""What the layers say to ``torch.jit.script``."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


def refuse_script(module: nn.Module) -> NoReturn:
    """For ``__prepare_scriptable__``: raises TypeError, where TorchScript would fail on the first Python."""
    raise TypeError(
        f"{type(module).__name__} is Python that TorchScript doesn't know; use torch.compile, torch.export "
        "or torch.jit.trace"
    )
