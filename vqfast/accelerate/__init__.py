"""One line speeds up a model that somebody already has: ``accelerate``. One file a library."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from vqfast.accelerate import diffusers, plain, swap, transformers, vector_quantize_pytorch
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


def accelerate(model: nn.Module, restore: bool = False) -> Report:
    """Gives every vector quantiser found in ``model`` our search and training step, in place.

    Codes are exact, outputs, losses and gradients the same up to rounding; state_dict, signatures and hooks
    stay. Works on a model that is compiled, wrapped by DistributedDataParallel or copied, before or after.
    Modules on a device without a compiled search are left alone; so accelerate a model where it is to run.
    A call with too little to search keeps its own code, which is faster then.

    Args:
        model: with modules of transformers, diffusers, vector-quantize-pytorch, or plain PyTorch ones.
        restore: whether to put back what was there instead. The report is then empty.

    Returns:
        What was replaced, and what was recognised and left alone, and why. Calling it again changes nothing.

    Raises:
        TypeError: ``model`` isn't a module.
        ValueError: no quantiser was recognised; the message says which are.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; want a torch.nn.Module")
    report = Report([], [])
    for path, module in list(model.named_modules()):
        if restore:
            swap.restore(module)
        else:
            _accelerate(path, module, report)
    if not restore and not report.replaced and not report.left:
        classes = ", ".join(name.rpartition(".")[2] for name in SWAPS)
        raise ValueError(
            f"model has no known quantiser: {classes}, or a plain one with its codes in an nn.Embedding, "
            "a buffer or a parameter"
        )
    return report


def _accelerate(path: str, module: nn.Module, report: Report) -> None:
    """Exchanges what is to be exchanged in one module, and says so in ``report``."""
    exchange = _known(type(module)) or plain.prepare(module)
    if exchange is None:
        return
    reason = _refusal(module, exchange)
    if not reason:
        swap.accelerate(module, exchange)
    if exchange.reported:
        rows, note = (report.left, reason) if reason else (report.replaced, exchange.note(module))
        rows.append(Entry(path, type(module).__name__, *exchange.size(module), note))


def _names(cls: type) -> Iterator[tuple[type, str]]:
    """A class and its bases, with their full names."""
    return ((base, f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)


def _known(cls: type) -> swap.Swap | None:
    """What to exchange in a class of a library, or in one made from it."""
    return next((SWAPS[name] for _, name in _names(cls) if name in SWAPS), None)


def _refusal(module: nn.Module, exchange: swap.Swap) -> str:
    """Why a module keeps its search, if it does."""
    library = next((base for base, name in _names(type(module)) if name in SWAPS), type(module))
    for name in exchange.methods:
        if name in vars(module):
            return f"its {name} was replaced in this instance"
        if getattr(type(module), name) is not getattr(library, name) and not swap.is_fast(type(module), name):
            return f"its class has a {name} of its own"
    if exchange.refusal:
        return exchange.refusal
    tensors = itertools.chain(module.parameters(), module.buffers())
    example = next(tensor for tensor in tensors if tensor.is_floating_point())
    try:
        backend = registry.backend("nearest", example, exchange.size(module)[1])
    except registry.NoBackendError as error:
        return str(error)
    slow = backend.__name__.endswith("reference")
    return f"no compiled search runs on {example.device} here" if slow else ""


def patch(library: str, restore: bool = False) -> list[str]:
    """Gives every module of a library our search, now and in future; with ``restore`` takes it back.

    Args:
        library: ``"transformers"``, ``"diffusers"`` or ``"vector_quantize_pytorch"``.

    Returns:
        The full names of the classes that can be imported here.

    Raises:
        ValueError: the library isn't one of these.
        ModuleNotFoundError: it isn't installed.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library is {library!r}; want one of {', '.join(LIBRARIES)}")
    importlib.import_module(library)
    patched = []
    for full_name, exchange in LIBRARIES[library].items():
        module_name, _, class_name = full_name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError):  # of another version, or its own imports aren't installed
            continue
        (swap.unpatch if restore else swap.patch)(cls, exchange)
        patched.append(full_name)
    return patched


accelerate.patch = patch
