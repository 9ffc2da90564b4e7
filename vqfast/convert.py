"""Checkpoints of other libraries' vector quantisers, as state dicts for the layers of this one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.nn import ResidualVQLayer, VQLayer

# For each library, the names of a quantiser's tensors there and here.
LIBRARIES = {
    "zalandoresearch/pytorch-vq-vae": {
        "_embedding.weight": "codebook",
        "_ema_cluster_size": "ema_counts",
        "_ema_w": "ema_sums",
    },
    "MishaLaskin/vqvae, taming-transformers": {
        "embedding.weight": "codebook",
        "embedding.cluster_size": "ema_counts",
        "embedding.embed_avg": "ema_sums",
    },
    "rosinality/vq-vae-2-pytorch": {
        "embed": "codebook",
        "cluster_size": "ema_counts",
        "embed_avg": "ema_sums",
    },
    "Keras' VQ-VAE example": {"embeddings_vqvae": "codebook", "embeddings_vqvae:0": "codebook"},
    "vector-quantize-pytorch": {
        "_codebook.embed": "codebook",
        "_codebook.cluster_size": "ema_counts",
        "_codebook.embed_avg": "ema_sums",
        "_codebook.initted": "initialised",
    },
}
TRANSPOSED = {"embed", "embed_avg", "embeddings_vqvae", "embeddings_vqvae:0"}  # stored as (D, K)
PROJECTIONS = {
    f"{place}.{name}": f"projection.{place}.{name}"
    for place in ("project_in", "project_out")
    for name in ("weight", "bias")
}
# Dropped where the layer doesn't have them. Where the state doesn't, they start from the codebook.
OPTIONAL = ("ema_counts", "ema_sums", "initialised")


def convert_state_dict(state: Mapping[str, Any], module: nn.Module, *, prefix: str = "") -> dict[str, Tensor]:
    """Turns another library's checkpoint into a state dict for ``module``.

    Known are the quantisers of zalandoresearch/pytorch-vq-vae, MishaLaskin/vqvae, taming-transformers,
    rosinality/vq-vae-2-pytorch and vector-quantize-pytorch (``VectorQuantize`` and ``ResidualVQ``), and that
    of Keras' VQ-VAE example. Codebooks, projections and moving averages are carried over. A moving average
    that has never seen a vector is left out, and so starts from the codebook.

    Args:
        state: the other library's tensors or arrays by name, of one quantiser or of a whole model.
        module: a ``VQLayer``, a ``ResidualVQLayer``, or a model that holds some of them at the paths where
            the other model holds its quantisers. It says which tensors are wanted and in which shapes, and
            stays as it is.
        prefix: what stands before the names of ``module``'s tensors in ``state``, for example
            ``"quantizer."``. Other tensors are left out.

    Returns:
        A state dict for ``module.load_state_dict``. Tensors that belong to no quantiser keep their names.

    Raises:
        TypeError: ``state`` isn't a mapping, or ``module`` isn't a module.
        ValueError: ``module`` has no vqfast layer, or a layer's tensors in ``state`` are missing, unknown, or
            of other sizes than the layer's.

    >>> state = {"quantize.embedding.weight": torch.ones(16, 4), "decoder.bias": torch.zeros(3)}
    >>> layer = vqfast.VQLayer(16, 4)
    >>> layer.load_state_dict(vqfast.convert_state_dict(state, layer, prefix="quantize."))
    <All keys matched successfully>
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}; want a mapping of names to tensors or arrays")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; want a torch.nn.Module")
    layers = dict(_layers(module))
    if not layers:
        raise ValueError(f"module is a {type(module).__name__} without layers of vqfast; want at least one")
    state = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    converted: dict[str, Tensor] = {}
    for path, layer in layers.items():
        own = {name.removeprefix(path): state.pop(name) for name in list(state) if name.startswith(path)}
        new = _converted(own, layer, prefix + path)
        converted |= {path + name: tensor for name, tensor in new.items()}
    return state | converted


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, VQLayer | ResidualVQLayer]]:
    """The layers of vqfast in ``module`` by their prefixes, without the stages of residual layers."""
    if isinstance(module, (VQLayer, ResidualVQLayer)):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _layers(child, f"{path}{name}.")


def _names(layer: VQLayer | ResidualVQLayer) -> dict[str, str]:
    """All names that the tensors of ``layer`` may have in other libraries, with their names here."""
    if isinstance(layer, VQLayer):
        return {name: own for names in LIBRARIES.values() for name, own in names.items()} | PROJECTIONS
    codebook = LIBRARIES["vector-quantize-pytorch"].items()
    return PROJECTIONS | {
        f"layers.{stage}.{name}": f"stages.{stage % len(layer.stages)}.{own}"
        for stage in range(layer.num_quantizers)
        for name, own in codebook
    }


def _converted(state: dict[str, Any], layer: VQLayer | ResidualVQLayer, prefix: str) -> dict[str, Tensor]:
    """The state dict of one layer; its tensors stood at ``prefix``, which errors name."""
    names, wanted = _names(layer), layer.state_dict()
    where = f"state at {prefix!r}" if prefix else "state"
    if unknown := sorted(state.keys() - names.keys()):
        raise ValueError(f"{where} has {', '.join(unknown)}; want {_known(layer)}{_hint(state)}")
    new: dict[str, Tensor] = {}
    for name, value in state.items():
        own = names[name]
        if own not in wanted:
            if own.endswith(OPTIONAL):
                continue
            raise ValueError(f"{where} has {name}; want none, as module has no {own}")
        tensor = _arranged(name, value, wanted[own].ndim)
        if tensor.shape != wanted[own].shape:
            sizes = f"{tuple(tensor.shape)}; want {tuple(wanted[own].shape)} as module's {own}"
            raise ValueError(f"{where} has {name}, which is {own}, of shape {sizes}")
        if own in new and not torch.equal(new[own], tensor):
            raise ValueError(f"{where} has {name} unlike those of other stages; want a shared codebook")
        new[own] = tensor
    if missing := [own for own in wanted if own not in new and not own.endswith(OPTIONAL)]:
        raise ValueError(f"{where} lacks module's {', '.join(missing)}; want all of them")
    return _averages(new, layer)


def _arranged(name: str, value: Any, ndim: int) -> Tensor:
    """``value`` as a tensor in the arrangement of vqfast, without the dimension of a single codebook."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    if name in TRANSPOSED:
        tensor = tensor.movedim(0, -1).contiguous()
    return tensor.squeeze(0) if tensor.ndim > ndim else tensor


def _averages(new: dict[str, Tensor], layer: VQLayer | ResidualVQLayer) -> dict[str, Tensor]:
    """``new`` with moving averages as ``layer`` keeps them.

    One that has seen no vector is left out. Where stages share a codebook, vector-quantize-pytorch keeps the
    mean over stages, and this library the sum.
    """
    if isinstance(layer, ResidualVQLayer):
        stages = {f"stages.{q}.": stage for q, stage in enumerate(layer.stages)}
        factor = layer.num_quantizers // len(stages)
    else:
        stages, factor = {"": layer}, 1
    for path, stage in stages.items():
        names = [path + name for name in ("codebook", "ema_counts", "ema_sums") if path + name in new]
        codebook, *averages = (new[name] for name in names)
        if averages and not averages[0].any():
            new = {name: tensor for name, tensor in new.items() if name not in names[1:]}
            continue
        new |= {name: factor * average for name, average in zip(names[1:], averages, strict=True)}
        if len(averages) == 2 and stage.metric == "cosine":
            # a layer keeps its sums only while the codebook is their average to the bit
            exact = stage._average(averages[0].unsqueeze(-1), averages[1])[0]
            new[names[0]] = exact if torch.allclose(exact, codebook, atol=1e-5) else codebook
    return new


def _known(layer: VQLayer | ResidualVQLayer) -> str:
    """The names that can be converted for ``layer``, for an error."""
    if isinstance(layer, ResidualVQLayer):
        names = ", ".join(f"layers.N.{name}" for name in LIBRARIES["vector-quantize-pytorch"])
        return f"{names} of {layer.num_quantizers} stages, as of vector-quantize-pytorch's ResidualVQ"
    return "the names of " + "; ".join(f"{library} ({', '.join(own)})" for library, own in LIBRARIES.items())


def _hint(state: dict[str, Any]) -> str:
    """Where in ``state`` there are codebooks, as the end of an error."""
    codebooks = [name for names in LIBRARIES.values() for name, own in names.items() if own == "codebook"]
    pattern = re.compile(rf"((?:.*?\.)?)(?:layers\.\d+\.)?(?:{'|'.join(map(re.escape, codebooks))})")
    found = dict.fromkeys(match[1] for name in state if (match := pattern.fullmatch(name)))
    places = " or ".join(f"prefix={place!r}" for place in found if place)
    return f". There are codebooks at {places}" if places else ""
