"""One line speeds up a model that somebody already has: ``accelerate``. One file a library."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from vqfast.acceleration import diffusers, plain, swap, transformers, vector_quantize_pytorch
from vqfast.ops import registry

LIBRARIES = {
    "transformers": transformers.SWAPS,
    "diffusers": diffusers.SWAPS,
    "vector_quantize_pytorch": vector_quantize_pytorch.SWAPS,
}
SWAPS = {name: swap for swaps in LIBRARIES.values() for name, swap in swaps.items()}


class Entry(NamedTuple):
    """A quantiser: path in the model, class, K, D, and why it, or one of its modes, was left alone."""

    path: str
    class_name: str
    num_embeddings: int
    embedding_dim: int
    note: str = ""

    def __str__(self) -> str:
        size = f"K = {self.num_embeddings}, D = {self.embedding_dim}"
        return f"{self.path or 'the model'}: {self.class_name}, {size}" + (self.note and f" ({self.note})")


class Report(NamedTuple):
    """The quantisers that search with vqfast now, and those that were recognised and left alone."""

    replaced: list[Entry]
    left: list[Entry]

    def __str__(self) -> str:
        parts = {"accelerated": self.replaced, "left alone": self.left}
        return "\n".join("\n  ".join([title, *map(str, rows)]) for title, rows in parts.items() if rows)


class Accelerate:
    """``vqfast.accelerate(model)`` for a model, ``vqfast.accelerate.patch(library)`` for all of a library."""

    def __call__(self, model: nn.Module, restore: bool = False) -> Report:
        """Gives every vector quantiser found in ``model`` our search and training step, in place.

        Codes are exact, outputs, losses and gradients the same up to rounding; state_dict, signatures and
        hooks stay. Works on a model that is compiled, wrapped by DistributedDataParallel or copied, before or
        after. Modules on a device without a compiled search are left alone; so accelerate a model where it is
        to run. A call with too little to search keeps its own code, which is faster then.

        Args:
            model: with modules of transformers, diffusers, vector-quantize-pytorch, or plain PyTorch ones.
            restore: whether to put back what was there instead. The report is then empty.

        Returns:
            What was replaced, and what was recognised and left alone, and why. Calling it again changes
            nothing.

        Raises:
            TypeError: ``model`` isn't a module.
            ValueError: no quantiser was recognised; the message says which are.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; want a torch.nn.Module")
        report = Report([], [])
        leaves: dict[str, str] = {}
        for path, module in list(model.named_modules()):
            if restore:
                swap.restore(module)
            else:
                _accelerate(path, module, report, leaves)
        if not restore and not report.replaced and not report.left:
            classes = ", ".join(name.rpartition(".")[2] for name in SWAPS)
            raise ValueError(
                f"model has no known quantiser: {classes}, or a plain one with its codes in an nn.Embedding, "
                "a buffer or a parameter"
            )
        return report

    def patch(self, library: str, restore: bool = False) -> list[str]:
        """Gives every module of a library our search, now and in future; with ``restore`` takes it back.

        Args:
            library: ``"transformers"``, ``"diffusers"`` or ``"vector_quantize_pytorch"``.

        Returns:
            The full names of the classes that search with vqfast now: those that the installed version has
            as we know them.

        Raises:
            ValueError: the library isn't one of these.
            ModuleNotFoundError: it isn't installed.
        """
        if library not in LIBRARIES:
            raise ValueError(f"library is {library!r}; want one of {', '.join(LIBRARIES)}")
        importlib.import_module(library)
        patched = []
        for full_name, exchange in LIBRARIES[library].items():
            cls = _imported(full_name)
            if cls is None or not exchange.methods or _misfit(cls, exchange):
                continue
            (swap.unpatch if restore else swap.patch)(cls, exchange)
            patched.append(full_name)
        return patched


accelerate = Accelerate()


def _accelerate(path: str, module: nn.Module, report: Report, leaves: dict[str, str]) -> None:
    """Exchanges what is to be exchanged in one module, and says so in ``report``.

    ``leaves``: by path, why modules are to be left alone; those inside this one are added.
    """
    exchange = _known(type(module)) or plain.prepare(module)
    if exchange is None:
        return
    reason = leaves.get(path) or _refusal(module, exchange)
    inside = {exchange.part[0]: reason} if exchange.part else {}
    if not reason:
        swap.accelerate(module, exchange)
        inside = exchange.leaves(module)
    leaves.update((f"{path}.{child}".lstrip("."), why) for child, why in inside.items())
    if exchange.reported:
        rows, note = (report.left, reason) if reason else (report.replaced, exchange.note(module))
        rows.append(Entry(path, type(module).__name__, *exchange.size(module), note))


def _names(cls: type) -> Iterator[tuple[type, str]]:
    """A class and its bases, with their full names."""
    return ((base, f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)


def _known(cls: type) -> swap.Swap | None:
    """What to exchange in a class of a library, or in one made from it."""
    return next((SWAPS[name] for _, name in _names(cls) if name in SWAPS), None)


def _imported(full_name: str) -> type | None:
    """A class by its name; ``None`` if this version lacks it, or what it imports isn't installed."""
    module_name, _, class_name = full_name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name, None)
    except ImportError:
        return None


def _misfit(cls: type, exchange: swap.Swap) -> str:
    """Why this version of a class, or of the part that searches for it, can't be exchanged, if so."""
    if (reason := swap.misfit(cls, exchange)) or exchange.part is None:
        return reason
    name = exchange.part[1]
    part = _imported(name)
    return swap.misfit(part, SWAPS[name]) if part else f"this version has no {name.rpartition('.')[2]}"


def _refusal(module: nn.Module, exchange: swap.Swap) -> str:
    """Why a module keeps its search, if it does."""
    library = next((base for base, name in _names(type(module)) if name in SWAPS), type(module))
    if reason := _misfit(library, exchange):
        return reason
    for name in (*exchange.methods, *exchange.via):
        if name in vars(module):
            return f"its {name} was replaced in this instance"
        if getattr(type(module), name) is not getattr(library, name) and not swap.is_fast(type(module), name):
            return f"its class has its own {name}"
    if reason := exchange.refusal(module):
        return reason
    if exchange.part:
        child, name = exchange.part
        part = getattr(module, child)
        known = _known(type(part)) is SWAPS[name]
        return _refusal(part, SWAPS[name]) if known else f"its {child} is a {type(part).__name__}"
    tensors = itertools.chain(module.parameters(), module.buffers())
    example = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if example is None:
        return ""
    try:
        backend = registry.backend("nearest", example, exchange.size(module)[1])
    except registry.NoBackendError as error:
        return str(error)
    slow = backend.__name__.endswith("reference")
    return f"no compiled search runs on {example.device} here" if slow else ""
