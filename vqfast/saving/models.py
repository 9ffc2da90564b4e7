"""A model as two files: weights in safetensors, the arguments of the model's class in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook as on_buffers
from torch.nn.modules.module import register_module_parameter_registration_hook as on_parameters

from vqfast.saving.storage import read_json, read_tensors, write_json, write_tensors

SLACK = 4 << 20  # numbers that a model may have beyond those in its file

MODELS: dict[str, Any] = {}  # the classes that a file may name

Class = TypeVar("Class", bound=type[nn.Module])


def loadable(cls: Class) -> Class:
    """Lets files name a class of vqfast, whose ``config`` are its constructor's arguments."""
    MODELS[cls.__name__] = cls
    return cls


def write_model(weights: Path, beside: Path, model: nn.Module) -> None:
    """Writes the weights of a model and, first, its class and config.

    Raises:
        ValueError: a weight is NaN or infinite, or the config can't be written; nothing is written.
    """
    check_rebuildable(model)
    _check_finite(weights, model)
    write_json(beside, _described(model))
    write_tensors(weights, model.state_dict())


def check_rebuildable(model: nn.Module) -> None:
    """Raises ValueError, with the name of the argument, where JSON can't hold the config of a model."""
    config: Any = model.config
    for name, value in config.items():
        if isinstance(value, nn.Module) and type(value) is not MODELS.get(type(value).__name__):
            raise ValueError(
                f"{name} is a {type(value).__name__}, which a file can't hold; want a vqfast layer"
            )


def read_model(weights: Path, beside: Path, kind: Any, name: str, device: torch.device | str) -> nn.Module:
    """Reads a model, in eval mode; no code in the files is run.

    Args:
        weights, beside: the files of ``write_model``.
        kind, name: the class or classes of which the model must be one, and what errors call it.
        device: where the model is to be.

    Raises:
        ValueError: a file is damaged, weights and config don't fit each other, a weight isn't finite, or the
            model is of another kind.
    """
    tensors, config = read_tensors(weights), read_json(beside)
    try:
        found = MODELS[config["class"]]
        if not issubclass(found, kind):
            raise ValueError(f"a {found.__name__} is no {name}")
        with _bounded_by(tensors.values()):
            model = _made(config)
    except Exception as error:  # values of any kind and size raise nearly anything
        raise ValueError(f"{beside} is no config of a vqfast model: {_line(error)}") from error
    for key, expected in model.state_dict().items():  # torch would convert the numbers without a word
        if key in tensors and tensors[key].is_floating_point() != expected.is_floating_point():
            raise ValueError(f"{weights} has {tensors[key].dtype} in {key}; want {expected.dtype}")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:  # a model comes back in the precision that it was saved in
        model.to(kinds.pop())
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{weights} doesn't fit {beside.name}: {_line(error)}") from error
    _check_finite(weights, model)
    return model.to(device).eval()


def _described(model: nn.Module) -> dict[str, Any]:
    """The class and the config of a model as JSON; a model in the config is described in the same way."""
    config: Any = model.config
    described = {name: _described(v) if isinstance(v, nn.Module) else v for name, v in config.items()}
    return {"class": type(model).__name__, **described}


def _made(config: Mapping[str, Any]) -> nn.Module:
    """The model that ``_described`` describes, with new weights."""
    arguments = {
        name: _made(value) if isinstance(value, dict) and value.get("class") in MODELS else value
        for name, value in config.items()
        if name != "class"
    }
    model: nn.Module = MODELS[config["class"]](**arguments)
    return model


def _line(error: Exception) -> str:
    text = str(error) if isinstance(error, (TypeError, ValueError)) else repr(error)
    return " ".join(text.split())[:200]


@contextmanager
def _bounded_by(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Stops the making of a module that has far more numbers than the tensors, before it takes the memory."""
    left = SLACK + 4 * sum(map(_size, tensors))  # a file may lack statistics as large as the codebook

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 0 if tensor is None else _size(tensor)
        if left < 0:
            raise ValueError("its model is larger than the weights")

    hooks = [hook(count) for hook in (on_parameters, on_buffers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _size(tensor: Tensor) -> int:
    return max(1024, tensor.numel())  # making a small tensor takes as long as making one of so many numbers


def _check_finite(path: Path, model: nn.Module) -> None:
    """Raises ValueError, with the name of the tensor, where a weight is NaN or infinite."""
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            value = tensor[~tensor.isfinite()][0].item()
            raise ValueError(f"{path} has {value} in {key}; want finite numbers")
