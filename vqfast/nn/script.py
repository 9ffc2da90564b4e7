"""What the layers say to ``torch.jit.script``."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


def refuse_script(module: nn.Module) -> NoReturn:
    """Raises TypeError; as ``__prepare_scriptable__`` it comes before less readable errors of TorchScript."""
    raise TypeError(
        f"{type(module).__name__} is Python code that TorchScript doesn't know; use torch.compile, "
        "torch.export or torch.jit.trace"
    )
