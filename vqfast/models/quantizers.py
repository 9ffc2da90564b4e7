"""The quantisers of models: the options of a layer, or a module in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import nn

from vqfast.nn import ResidualVQLayer, VQLayer

LAYERS: dict[str, type[VQLayer | ResidualVQLayer]] = {
    kind.__name__: kind for kind in (VQLayer, ResidualVQLayer)
}
MakeLayer = Callable[[int], VQLayer]  # of an embedding_dim
# the layers of the Keras example and of the notebooks: the optimiser alone moves their random code vectors
RANDOM_START: dict[str, Any] = {"kmeans_init": False, "revive_below": 0.0}
NEEDED = ("num_embeddings", "embedding_dim", "encode", "decode")


class LayerOptions(TypedDict, total=False):
    """The options of ``VQLayer`` that a model passes on; what they mean is said there.

    Example:
        >>> options: vqfast.models.LayerOptions = {"decay": 0.99, "revive_below": 0.1}
        >>> vqfast.VQVAE(hidden_channels=8, **options).vq
        VQLayer(
          512, 64, decay=0.99, revive_below=0.1
          (projection): Projection()
        )
    """

    beta: float
    decay: float | None
    eps: float
    metric: str
    heads: int
    separate_codebooks: bool
    codebook_dim: int | None
    kmeans_init: bool
    revive_below: float
    gradient: str
    learnable: bool


def make_layer(num_embeddings: int, embedding_dim: int, options: Mapping[str, Any]) -> VQLayer:
    """The ``VQLayer`` of ``LayerOptions``.

    Raises:
        TypeError: an option isn't in ``LayerOptions``; or, like ValueError, as in ``VQLayer``.
    """
    unknown = sorted(options.keys() - LayerOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"got an unexpected argument {unknown[0]!r}; want one of VQLayer's options")
    return VQLayer(num_embeddings, embedding_dim, **options)


def given_quantizer(quantizer: nn.Module | Mapping[str, Any]) -> nn.Module:
    """The quantiser that a model was given, made anew where it is the dict that ``quantizer_config`` wrote.

    Raises:
        TypeError, ValueError: it is something else, or its arguments are wrong.
    """
    made = quantizer
    if isinstance(quantizer, Mapping) and quantizer.get("class") in LAYERS:
        arguments = {name: value for name, value in quantizer.items() if name != "class"}
        made = LAYERS[quantizer["class"]](**arguments)
    if not isinstance(made, nn.Module) or not all(hasattr(made, name) for name in NEEDED):
        raise TypeError(f"quantizer is {quantizer!r}; want a module with {', '.join(NEEDED)}, or None")
    if isinstance(made, VQLayer | ResidualVQLayer) and made.channel_dim != 1:
        raise ValueError(f"quantizer has channel_dim {made.channel_dim}; want 1")
    return made


def quantizer_config(quantizer: nn.Module) -> dict[str, Any] | nn.Module:
    """A JSON-able dict that ``given_quantizer`` takes; a module that isn't vqfast's stands for itself."""
    name = type(quantizer).__name__
    if type(quantizer) is not LAYERS.get(name):
        return quantizer
    assert isinstance(quantizer, VQLayer | ResidualVQLayer)
    return {"class": name, **quantizer.arguments()}
