"""Parameters that FSDP2 (``torch.distributed.fsdp.fully_shard``) shards, so that each rank has a part.

FSDP2 gathers them for a module's forward only. Other methods have to gather them themselves, and values that
forward writes into a gathered parameter have to be written into its parts too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Method = TypeVar("Method", bound=Callable[..., Any])


def _possible() -> bool:
    return not torch.compiler.is_compiling() and dist.is_available() and dist.is_initialized()


class _Call(nn.Module):
    """A module whose forward is a method of another, for ``torch.func.functional_call``."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.module, *args, **kwargs)


def whole(method: Method) -> Method:
    """The method, with gathered parameters wherever it is called; all ranks must call it alike."""

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _possible():
            parts = {f"module.{name}": part.full_tensor() for name, part in _own_parts(self)}
            if parts:
                return torch.func.functional_call(_Call(self, method), parts, args, kwargs)
        return method(self, *args, **kwargs)

    return cast(Method, run)


def _own_parts(module: nn.Module) -> list[tuple[str, Any]]:
    """Sharded parameters by their dotted names, without those of submodules that FSDP2 gathers by itself."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    others = tuple(f"{name}." for name, m in module.named_modules() if name and isinstance(m, FSDPModule))
    named = module.named_parameters()
    return [(name, p) for name, p in named if isinstance(p, DTensor) and not name.startswith(others)]


def _parts(module: nn.Module, name: str) -> Iterator[Tensor]:
    """This rank's parts of a parameter that is gathered now; FSDP2 keeps them in the closure of a hook."""
    for hook in module._load_state_dict_post_hooks.values():
        for cell in getattr(hook, "__closure__", None) or ():
            owner = cell.cell_contents
            if type(owner).__name__ == "FSDPParam" and owner._module_info.param_name == name:
                yield owner.sharded_param


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank, of a tensor that may be sharded."""
    full_tensor: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def write(module: nn.Module, name: str, value: Tensor, where: Tensor | None = None) -> None:
    """Copies ``value`` into a parameter or buffer, and into its parts, where ``where`` (of its shape) is
    True.

    Of a sharded tensor all parts get the first rank's ``value``.
    """
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
