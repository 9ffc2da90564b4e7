"""``vqfast.accelerate``: the quantisers of an existing model search and train by vqfast, in place.

There is a file for each library, and ``probing`` for classes in plain PyTorch.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from vqfast.acceleration import diffusers, probing, replacement, transformers, vector_quantize_pytorch
from vqfast.acceleration.priors import find_priors
from vqfast.acceleration.replacement import Replacement
from vqfast.checks import check_choice, check_flags
from vqfast.ops import registry

LIBRARIES = {
    "transformers": transformers.REPLACEMENTS,
    "diffusers": diffusers.REPLACEMENTS,
    "vector_quantize_pytorch": vector_quantize_pytorch.REPLACEMENTS,
}
REPLACEMENTS = {name: each for library in LIBRARIES.values() for name, each in library.items()}


class Entry(NamedTuple):
    """A quantiser that ``accelerate`` found.

    Attributes:
        path: where it is in the model; empty for the model itself.
        class_name: the name of its class.
        num_embeddings: K, the number of codes.
        embedding_dim: D, the channels of a code vector.
        note: why it, or one of its modes, keeps its own code; else empty.
    """

    path: str
    class_name: str
    num_embeddings: int
    embedding_dim: int
    note: str = ""

    def __str__(self) -> str:
        size = f"K = {self.num_embeddings}, D = {self.embedding_dim}"
        return f"{self.path or 'the model'}: {self.class_name}, {size}" + (self.note and f" ({self.note})")


class Report(NamedTuple):
    """What ``accelerate`` did; ``print`` shows it line by line.

    Attributes:
        accelerated: the quantisers that use vqfast now.
        left_alone: the quantisers that were recognised and keep their own code; ``note`` says why.
        priors: the paths of networks that look like a PixelCNN or a PixelSNAIL. ``accelerate`` doesn't change
            them; ``vqfast.program_of`` samples them fast.

    >>> from vector_quantize_pytorch import VectorQuantize
    >>> report = vqfast.accelerate(VectorQuantize(dim=16, codebook_size=64))
    >>> len(report.accelerated), report.left_alone
    (1, [])
    """

    accelerated: list[Entry]
    left_alone: list[Entry]
    priors: list[str]

    def __str__(self) -> str:
        parts: dict[str, list[Any]] = {"accelerated": self.accelerated, "left alone": self.left_alone}
        how = "vqfast.program_of(call, num_embeddings, shape) samples them, where call maps codes to logits"
        parts[f"priors: {how}"] = [path or "the model" for path in self.priors]
        return "\n".join(
            "\n  ".join([title, *map(str, entries)]) for title, entries in parts.items() if entries
        )


class Accelerate:
    """``vqfast.accelerate(model)`` for a model, ``vqfast.accelerate.patch(library)`` for a whole library."""

    def __call__(self, model: object, *, restore: bool = False) -> Report:
        """Makes every vector quantiser found in ``model`` use vqfast, in place.

        Indices are exact; outputs, losses and gradients are the same up to rounding; state_dict, signatures
        and hooks stay. It works before or after the model is compiled, copied, or wrapped in
        DistributedDataParallel. Move the model to its device first: on a device without a compiled backend,
        modules are left alone. A call that is too small to gain runs the module's own code.

        Args:
            model: holds quantisers of transformers, diffusers, vector-quantize-pytorch, or plain PyTorch: a
                module; or an object with modules as attributes, as a pipeline of transformers or diffusers.
                Paths then begin with the attribute's name.
            restore: undoes it. The report is then empty.

        Returns:
            Which quantisers were accelerated, which were left alone and why, and which networks are priors
            for ``vqfast.program_of``. A second call changes nothing.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: there is no quantiser and no prior in it that is recognised. The message lists the
                known classes.

        >>> from vector_quantize_pytorch import VectorQuantize
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), VectorQuantize(dim=16, codebook_size=64))
        >>> print(vqfast.accelerate(model))
        accelerated
          1: VectorQuantize, K = 64, D = 16
        """
        whole = model if isinstance(model, nn.Module) else _held(model)
        check_flags(restore=restore)
        report = Report([], [], [] if restore else find_priors(whole))
        excluded: dict[str, str] = {}
        for path, module in list(whole.named_modules()):
            if restore:
                replacement.restore(module)
            else:
                _accelerate(path, module, report, excluded)
        if not restore and not any(report):
            classes = ", ".join(name.rpartition(".")[2] for name in REPLACEMENTS)
            raise ValueError(
                f"model has no known quantiser; want {classes}, or a class in plain PyTorch with its "
                "codebook in an nn.Embedding, a buffer or a parameter"
            )
        return report

    def patch(self, library: str, *, restore: bool = False) -> list[str]:
        """Makes every module of a library use vqfast, those built later too.

        Args:
            library: ``"transformers"``, ``"diffusers"`` or ``"vector_quantize_pytorch"``.
            restore: undoes it.

        Returns:
            The full names of the classes that use vqfast now. A class that the installed version lacks, or
            has in another form, isn't among them.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: the library isn't one of these.
            ModuleNotFoundError: it isn't installed.

        >>> vqfast.accelerate.patch("diffusers")
        ['diffusers.models.autoencoders.vae.VectorQuantizer']
        >>> vqfast.accelerate.patch("diffusers", restore=True)
        ['diffusers.models.autoencoders.vae.VectorQuantizer']
        """
        check_choice("library", library, LIBRARIES)
        check_flags(restore=restore)
        importlib.import_module(library)
        patched = []
        for full_name, found in LIBRARIES[library].items():
            cls = _imported(full_name)
            if cls is None or not found.methods or _mismatch(cls, found):
                continue
            (replacement.unpatch if restore else replacement.patch)(cls, found)
            patched.append(full_name)
        return patched


accelerate = Accelerate()


def _held(pipeline: object) -> nn.Module:
    """A module of those that an object has as attributes, under their names.

    Raises:
        TypeError: it has none.
    """
    held = nn.Module()
    for name, value in getattr(pipeline, "__dict__", {}).items():
        if isinstance(value, nn.Module):
            held.add_module(name, value)
    if not held._modules:
        wanted = "a torch.nn.Module, or a pipeline that has some as attributes"
        raise TypeError(f"model is a {type(pipeline).__name__}; want {wanted}")
    return held


def _accelerate(path: str, module: nn.Module, report: Report, excluded: dict[str, str]) -> None:
    """Accelerates one module if it is a quantiser, and says so in ``report``.

    ``excluded`` has the paths to leave alone, and why; those that this module excludes are added.
    """
    found = _known(type(module)) or probing.prepare(module)
    if found is None:
        return
    reason = excluded.get(path) or _refusal(module, found)
    inside = {found.part[0]: reason} if found.part else {}
    if not reason:
        replacement.accelerate(module, found)
        inside = found.excluded(module)
    excluded.update((f"{path}.{child}".lstrip("."), why) for child, why in inside.items())
    if found.reported:
        entries, note = (report.left_alone, reason) if reason else (report.accelerated, found.note(module))
        entries.append(Entry(path, type(module).__name__, *found.size(module), note))


def _names(cls: type) -> Iterator[tuple[type, str]]:
    """A class and its bases, with their full names."""
    return ((base, f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)


def _known(cls: type) -> Replacement | None:
    """What to replace in a class of a library, or in a subclass of one."""
    return next((REPLACEMENTS[name] for _, name in _names(cls) if name in REPLACEMENTS), None)


def _imported(full_name: str) -> type | None:
    """A class by its name; ``None`` if this version lacks it, or lacks a dependency of its module."""
    module_name, _, class_name = full_name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name, None)
    except ImportError:
        return None


def _mismatch(cls: type, found: Replacement) -> str:
    """Why this version of a class, or of the part that searches for it, can't be accelerated; else empty."""
    if (reason := replacement.mismatch(cls, found)) or found.part is None:
        return reason
    name = found.part[1]
    part = _imported(name)
    if part is None:
        return f"this version has no {name.rpartition('.')[2]}"
    return replacement.mismatch(part, REPLACEMENTS[name])


def _refusal(module: nn.Module, found: Replacement) -> str:
    """Why a module keeps its own code; empty if it can be accelerated."""
    library = next((base for base, name in _names(type(module)) if name in REPLACEMENTS), type(module))
    if reason := _mismatch(library, found):
        return reason
    for name in (*found.methods, *found.callers):
        if name in vars(module):
            return f"its {name} was replaced in this instance"
        own = getattr(type(module), name) is not getattr(library, name)
        if own and not replacement.is_replaced(type(module), name):
            return f"its class has its own {name}"
    if reason := found.refusal(module):
        return reason
    if found.part:
        child, name = found.part
        part = getattr(module, child)
        known = _known(type(part)) is REPLACEMENTS[name]
        return _refusal(part, REPLACEMENTS[name]) if known else f"its {child} is a {type(part).__name__}"
    tensors = itertools.chain(module.parameters(), module.buffers())
    example = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if example is None:
        return ""
    try:
        backend = registry.backend("nearest", example, found.size(module)[1])
    except registry.NoBackendError as error:
        return str(error)
    slow = backend.__name__.endswith("reference")
    return f"no compiled backend runs on {example.device} here" if slow else ""
