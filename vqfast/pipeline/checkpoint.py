"""Models on disk: weights in safetensors, the arguments of the model's class in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook as on_buffers
from torch.nn.modules.module import register_module_parameter_registration_hook as on_parameters

from vqfast.models import (
    VQVAE,
    Autoencoder,
    Classifier,
    HierarchicalVQVAE,
    SecondStage,
    SpeechVQVAE,
)
from vqfast.pipeline.levels import Prior
from vqfast.pipeline.storage import read_json, read_tensors, write_json, write_tensors
from vqfast.priors import ConditionedPrior, PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet
from vqfast.priors.base import CausalPrior

SLACK = 4 << 20  # numbers that a model may have beyond those in its file

AUTOENCODERS = (VQVAE, HierarchicalVQVAE, SecondStage, SpeechVQVAE)
PRIORS = (PixelCNN, ResidualPixelCNN, PixelSNAIL, WaveNet, ConditionedPrior)
MODELS: dict[str, Any] = {cls.__name__: cls for cls in (*AUTOENCODERS, *PRIORS, Classifier)}
# the class of a run's model, by its name
KINDS: dict[str, Any] = {"vqvae": Autoencoder, "prior": Prior, "classifier": Classifier}


def save_model(folder: str | Path, name: str, model: Autoencoder | Prior | Classifier) -> None:
    """Writes a model to ``name.safetensors`` and ``name.config.json`` in a folder.

    Args:
        folder: is made if it isn't there.
        name: in a run's folder ``"vqvae"``, ``"prior"``, and ``"prior-1"`` and so on for finer levels.

    Raises:
        ValueError: a weight is NaN or infinite, or the model has a quantiser that isn't vqfast's, which
            ``load_model`` couldn't make again; nothing is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(folder, "vqvae", VQVAE(hidden_channels=8, num_embeddings=16))
    ...     load_model(folder, "vqvae").codebook_sizes
    (16,)
    """
    check_rebuildable(model)
    weights = Path(folder, f"{name}.safetensors")
    _check_finite(weights, model)
    write_json(Path(folder, f"{name}.config.json"), _described(model))
    write_tensors(weights, model.state_dict())


def check_rebuildable(model: Autoencoder | Prior | Classifier) -> None:
    """Raises ValueError, with the name of the argument, where JSON can't hold the config of a model."""
    for name, value in model.config.items():
        if isinstance(value, nn.Module) and type(value) is not MODELS.get(type(value).__name__):
            raise ValueError(
                f"{name} is a {type(value).__name__}, which a file can't hold; want a vqfast layer"
            )


@overload
def load_model(
    folder: str | Path, name: Literal["vqvae"], *, device: torch.device | str = "cpu"
) -> Autoencoder: ...


@overload
def load_model(
    folder: str | Path, name: Literal["prior"], *, device: torch.device | str = "cpu"
) -> CausalPrior: ...


@overload
def load_model(folder: str | Path, name: str, *, device: torch.device | str = "cpu") -> nn.Module: ...


def load_model(folder: str | Path, name: str, *, device: torch.device | str = "cpu") -> nn.Module:
    """Loads a model of a run, in eval mode; no code in the files is run.

    Args:
        folder: a run's, or any that ``save_model`` wrote to.
        name: that was given to ``save_model``.
        device: where the model is to be.

    Raises:
        FileNotFoundError: the folder has no such model.
        ValueError: a file is damaged, weights and config don't fit each other, a weight isn't finite, or the
            model is of another kind.

    Example:
        >>> save_model(Path("runs/small"), "vqvae", vqfast.VQVAE(hidden_channels=8))
        >>> vqfast.load_model("runs/small", "vqvae").config["hidden_channels"]
        8
    """
    weights, beside = Path(folder, f"{name}.safetensors"), Path(folder, f"{name}.config.json")
    for path in (weights, beside):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train the {name} first")
    tensors, config = read_tensors(weights), read_json(beside)
    try:
        kind = MODELS[config["class"]]
        if not issubclass(kind, KINDS.get(name.partition("-")[0], nn.Module)):
            raise ValueError(f"a {kind.__name__} is no {name}")
        with _bounded_by(tensors.values()):
            model = _made(config)
    except Exception as error:  # values of any kind and size raise nearly anything
        raise ValueError(f"{beside} is no config of a vqfast model: {_line(error)}") from error
    for key, expected in model.state_dict().items():  # torch would convert the numbers without a word
        if key in tensors and tensors[key].is_floating_point() != expected.is_floating_point():
            raise ValueError(f"{weights} has {tensors[key].dtype} in {key}; want {expected.dtype}")
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
