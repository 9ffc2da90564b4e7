"""The models of a run on disk: two files each, named after what the model is in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from vqfast.models import Autoencoder, Classifier
from vqfast.pipeline.levels import Prior
from vqfast.priors.base import CausalPrior
from vqfast.saving.models import check_rebuildable, read_model, write_model

__all__ = ["check_rebuildable", "load_model", "save_model"]

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
    ...     save_model(folder, "vqvae", vqfast.VQVAE(hidden_channels=8, num_embeddings=16))
    ...     load_model(folder, "vqvae").codebook_sizes
    (16,)
    """
    write_model(Path(folder, f"{name}.safetensors"), Path(folder, f"{name}.config.json"), model)


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
    stem = name.partition("-")[0]
    return read_model(weights, beside, KINDS.get(stem, nn.Module), stem, device)
