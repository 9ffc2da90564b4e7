"""Parameters that FSDP2 (``torch.distributed.fsdp.fully_shard``) cuts into parts, one for each rank.

They are whole in a module's forward only: methods beside it gather them, and what forward writes has to reach
the parts too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Method = TypeVar("Method", bound=Callable)


def _possible() -> bool:
    return not torch.compiler.is_compiling() and dist.is_available() and dist.is_initialized()


class _Call(nn.Module):
    """A module's method as a forward, for ``functional_call``."""

    def __init__(self, module: nn.Module, method: Callable) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args, **kwargs) -> Any:
        return self.method(self.module, *args, **kwargs)


def whole(method: Method) -> Method:
    """The method with whole parameters wherever it is called; all ranks must call it alike."""

    @functools.wraps(method)
    def run(self: nn.Module, *args, **kwargs) -> Any:
        if _possible():
            parts = {f"module.{name}": part.full_tensor() for name, part in _own_parts(self)}
            if parts:
                return torch.func.functional_call(_Call(self, method), parts, args, kwargs)
        return method(self, *args, **kwargs)

    return cast(Method, run)


def _own_parts(module: nn.Module) -> list[tuple[str, Any]]:
    """Parts of parameters by their dotted names, but of submodules that gather their own when called."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    others = tuple(f"{name}." for name, m in module.named_modules() if name and isinstance(m, FSDPModule))
    named = module.named_parameters()
    return [(name, p) for name, p in named if isinstance(p, DTensor) and not name.startswith(others)]


def _parts(module: nn.Module, name: str) -> Iterator[Tensor]:
    """What FSDP2 keeps of a parameter of ``module`` while the whole one stands there: it leaves a hook."""
    for hook in module._load_state_dict_post_hooks.values():
        for cell in getattr(hook, "__closure__", None) or ():
            owner = cell.cell_contents
            if type(owner).__name__ == "FSDPParam" and owner._module_info.param_name == name:
                yield owner.sharded_param


def gathered(tensor: Tensor) -> Tensor:
    """The whole of it, on every rank."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def write(module: nn.Module, name: str, value: Tensor, where: Tensor | None = None) -> None:
    """Puts ``value``, the first rank's, into a parameter or buffer; ``where``, of its shape, masks it."""
    targets = [getattr(module, name)]
    if _possible():
        targets += [part for part in _parts(module, name) if part is not targets[0]]
    for target in targets:
        new, here = value.to(target.dtype), where
        if hasattr(target, "placements"):
            from torch.distributed.tensor import distribute_tensor

            cut = functools.partial(
                distribute_tensor, device_mesh=target.device_mesh, placements=target.placements
            )
            new, here = cut(new), None if here is None else cut(here)
        target.copy_(new if here is None else torch.where(here, new, target))
