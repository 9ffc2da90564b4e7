"""Quantisers in plain PyTorch: the many copies of ``VectorQuantizer``, with small differences between them.

Their codebook is an ``nn.Embedding``, a buffer or a parameter; ``forward`` or ``straight_through`` takes one
tensor. No class is known by its name. A probe batch shows how one behaves: where the channels stand, what it
returns in which shape, how its loss is weighted, how its moving average moves. A class is accepted only if
its outputs, gradients and state then match vqfast's on more probe batches; a mode that differs keeps its own
code. Checked with torch 2.13.

One rank can't see whether a moving average is joined over ranks. With several ranks, training with a moving
average keeps its own code.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.acceleration.behaviour import (
    METHODS,
    VALUES,
    Average,
    Behaviour,
    Behaviours,
    Loss,
    Place,
    averaged,
    leaves_of,
    map_leaves,
    perform,
)
from vqfast.acceleration.replacement import Replacement
from vqfast.functional import Quantized, quantize
from vqfast.nn import ranks

# Shapes of probe batches; -1 stands for the channels.
SHAPES = [(2, -1, 3, 5), (2, 3, 5, -1), (2, -1, 7), (2, 7, -1), (11, -1), (2, -1, 2, 3, 5)]
MODULE_ATTRIBUTES = set(vars(nn.Module()))
SETTINGS = (bool, int, float, str, type(None))  # the types of plain attributes
TOLERANCE = 1e-4  # relative to the largest value: float32, summed in another order
TAKES_NO_VECTORS = "none of its methods takes one tensor of vectors"
QUANTISER_NAME = re.compile("quanti[sz]|vq|codebook", re.IGNORECASE)
CODEBOOK_NAME = re.compile("embed|code|dict|centroid", re.IGNORECASE)


class Mismatch(Exception):
    """A mode of a module doesn't behave like a quantiser of vqfast; the message says why."""


def _places(module: nn.Module) -> list[Place]:
    """Where a module may have its codebook: in its only child with parameters, or else in its own tensors."""
    cls = type(module)
    children = [pair for pair in module.named_children() if any(True for _ in pair[1].parameters())]
    if cls.__module__.partition(".")[0] == "torch" or len(children) > 1:
        return []
    if children:
        ((name, child),) = children
        tensor = getattr(child, "weight", None)
        matrix = isinstance(tensor, Tensor) and tensor.ndim == 2
        fits = type(child) is nn.Embedding or (matrix and CODEBOOK_NAME.search(type(child).__name__))
        return [Place(f"{name}.weight", False)] if fits else []
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    names = [name for name, tensor in tensors if tensor.ndim == 2 and tensor.is_floating_point()]
    named = [name for name in names if QUANTISER_NAME.search(cls.__name__) or CODEBOOK_NAME.search(name)]
    return [Place(name, transposed) for name in named for transposed in (False, True)]


def prepare(module: nn.Module) -> Replacement | None:
    """What to replace in a quantiser; ``None`` for any other module."""
    methods = {name: method for name, method in METHODS.items() if hasattr(type(module), name)}
    found: Behaviours | None = getattr(module, "vqfast_behaviours", None) or _probe(module, list(methods))
    if found is None or not (found.known or QUANTISER_NAME.search(type(module).__name__)):
        return None
    refusal = "" if found.known else found.note
    return Replacement(
        methods,
        lambda module: found.size,
        note=lambda module: found.note,
        refusal=lambda module: refusal,
        behaviours=found,
    )


def _probe(module: nn.Module, methods: list[str]) -> Behaviours | None:
    """The behaviours with the codebook at the first place that fits; if none does, why."""
    tried = []
    for place in _places(module):
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            tried.append(_probe_place(module, place, methods))
        if tried[-1].known:
            return tried[-1]
    return next((each for each in tried if each.note != TAKES_NO_VECTORS), tried[0] if tried else None)


def _probe_place(module: nn.Module, place: Place, methods: list[str]) -> Behaviours:
    """The behaviours of a module whose codebook is at ``place``."""
    known: dict[tuple[str, bool, int], Behaviour] = {}
    reasons: dict[str, list[str]] = {}
    codebook = place.turn(place.tensor(module))
    size = (codebook.shape[0], codebook.shape[1])
    if codebook.is_meta:
        return Behaviours({}, "its weights are on the meta device", size)
    methods = [method for method in methods if method not in vars(module)]
    modes = itertools.product(methods, SHAPES)
    accepted = [(method, shape) for method, shape in modes if _takes(module, place, method, shape)]
    for (method, shape), training in itertools.product(accepted, (False, True)):
        key = method, training, len(shape)
        if key in known:
            continue
        try:
            if training and ranks.several() and any(True for _ in module.buffers()):
                raise Mismatch("one of several ranks can't see whether its averages are joined")
            behaviour = _behaviour(module, place, method, training, shape)
            _check(behaviour, module, method, training, shape)
            known[key] = behaviour
        except Mismatch as reason:
            reasons.setdefault(f"{method} in {'training' if training else 'eval'}", []).append(str(reason))
    for method, training, _ in known:  # a mode that is known for one shape may differ for others
        reasons.pop(f"{method} in {'training' if training else 'eval'}", None)
    kept = [f"{mode} keeps its own code: {' or '.join(dict.fromkeys(why))}" for mode, why in reasons.items()]
    return Behaviours(known, "; ".join(kept) or ("" if known else TAKES_NO_VECTORS), size)


def _takes(module: nn.Module, place: Place, method: str, shape: tuple[int, ...]) -> bool:
    """Whether a method takes vectors of that shape. The codebook, which may be large, isn't copied."""
    held = place.tensor(module)
    channels = place.turn(held).shape[1]
    zeros = held.new_zeros([channels if length == -1 else length for length in shape])
    with torch.no_grad():
        try:
            getattr(copy.deepcopy(module, {id(held): held}).eval(), method)(zeros)
        except Exception:  # whatever a foreign module makes of it
            return False
    return True


def _vectors(codebook: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random float32 vectors far from ties between codes; ``shape`` as in ``SHAPES``."""
    grid = [length for length in shape if length != -1]
    drawn = torch.randn(4 * math.prod(grid), codebook.shape[1]).to(codebook)
    first, second = torch.cdist(drawn, codebook).square().topk(2, largest=False).values.unbind(1)
    clearest = (second - first).topk(math.prod(grid)).indices
    return drawn[clearest].view(*grid, -1).movedim(-1, shape.index(-1)).contiguous()


def _call(module: nn.Module, method: str, z: Tensor) -> Any:
    try:
        return getattr(module, method)(z)
    except Exception as error:  # whatever a foreign module makes of it
        raise Mismatch(f"it raises {type(error).__name__}: {error}") from error


def _copy(module: nn.Module, place: Place, training: bool) -> tuple[nn.Module, Tensor]:
    """A float32 copy that may be changed, and its codebook, ``(K, D)``.

    The codebook is random, the same each time, with code vectors of different lengths. With equal lengths, or
    all code vectors alike, a module with another metric could pass.
    """
    copied = copy.deepcopy(module).float().train(training)
    held = place.tensor(copied)
    held.requires_grad_(isinstance(held, nn.Parameter))
    codebook = place.turn(held.data)
    generator = torch.Generator().manual_seed(0)
    codebook.copy_(torch.randn(codebook.shape, generator=generator))
    codebook.mul_(0.3 + torch.rand(len(codebook), 1, generator=generator).to(codebook))
    return copied, codebook.clone()


def _settings(module: nn.Module) -> dict[str, object]:
    """The plain attributes of a module and its children, by their dotted names."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in MODULE_ATTRIBUTES and isinstance(value, SETTINGS)
    }


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _behaviour(
    module: nn.Module, place: Place, method: str, training: bool, shape: tuple[int, ...]
) -> Behaviour:
    """What the outputs, gradients and state of one probe batch suggest.

    Raises:
        Mismatch: no quantiser of vqfast gives them.
    """
    probed, codebook = _copy(module, place, training)
    settings, before = _settings(probed), _state(probed)
    dim = -1 if shape[-1] == -1 else shape.index(-1)
    z_e, held = _vectors(codebook, shape).requires_grad_(), place.tensor(probed)
    codebook.requires_grad_(held.requires_grad)
    returned = _call(probed, method, z_e)
    if _settings(probed) != settings:
        raise Mismatch("a call changes its attributes")
    out = quantize(z_e, codebook, channel_dim=dim, return_statistics=True)
    floats = {value for value in settings.values() if isinstance(value, float)}

    def identify(leaf: object) -> object:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            raise Mismatch(f"it returns a {type(leaf).__name__}")
        to_vectors, to_codebook = _gradients(leaf, z_e, held)
        to_codebook = place.turn(to_codebook)
        if leaf.ndim == 0 and leaf.requires_grad:
            (codebook_gradient,) = _gradients(out.codebook_loss, codebook)
            (commitment_gradient,) = _gradients(out.commitment_loss, z_e)
            pairs = (to_codebook, codebook_gradient), (to_vectors, commitment_gradient)
            weights = [(x * one).sum() / one.square().sum().clamp(min=1e-30) for x, one in pairs]
            return Loss(*(_snap(float(weight), {0.0, 1.0} | floats) for weight in weights))
        for name, value in VALUES.items():
            own = value(out, codebook, dim)
            if _same(own, leaf) and _same(_gradients(own, z_e, codebook), [to_vectors, to_codebook]):
                return name
        raise Mismatch("it returns a value that no search of nearest codes gives")

    returns = map_leaves(identify, returned)
    average = _average(before, _state(probed), place, out, floats)
    leaves = leaves_of(returns)
    learns = any(leaf.codebook != 0 if isinstance(leaf, Loss) else leaf == "code vectors" for leaf in leaves)
    statistics = average is not None or "perplexity" in leaves
    return Behaviour(place, dim, returns, average, learns, statistics, settings)


def _average(
    before: dict[str, Tensor], after: dict[str, Tensor], place: Place, out: Quantized, floats: set[float]
) -> Average | None:
    """The moving average by which the state has moved, or ``None`` if it hasn't.

    Raises:
        Mismatch: it has moved by another rule.
    """
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    if not moved:
        return None
    codebook, turn = place.name, place.turn
    shape = before[codebook].shape
    counts = next((name for name in moved if before[name].shape == turn(before[codebook]).shape[:1]), None)
    sums = next((name for name in moved if name != codebook and before[name].shape == shape), None)
    if counts and sums and {codebook, counts, sums} == set(moved):
        for rule in itertools.product(floats | {0.99}, floats | {0.0, 1e-5}, (False, True)):
            average = Average(counts, sums, *rule)
            moves = averaged(average, before[counts], turn(before[sums]), out)
            if _same(moves, (turn(after[codebook]), after[counts], turn(after[sums]))):
                return average
    raise Mismatch(f"it moves {', '.join(moved)} by another rule than a moving average")


def _check(
    behaviour: Behaviour, module: nn.Module, method: str, training: bool, shape: tuple[int, ...]
) -> None:
    """Compares vqfast with the module on several batches, one after the other.

    Raises:
        Mismatch: outputs, gradients or state differ.
    """
    place = behaviour.place
    (own, codebook), (other, _) = _copy(module, place, training), _copy(module, place, training)
    calls: dict[nn.Module, Callable[[Tensor], Any]] = {
        own: lambda z_e: perform(behaviour, own, z_e),
        other: lambda z_e: _call(other, method, z_e),
    }
    for batch in (3, 1, 4):
        x = _vectors(codebook, (batch, *shape[1:]))
        results = []
        for model, call in calls.items():
            z_e, held = x.clone().requires_grad_(), place.tensor(model)
            tensors = [leaf for leaf in leaves_of(call(z_e)) if leaf is not None]
            gradients = [_gradients(leaf, z_e, held) for leaf in tensors]
            results.append([tensors, gradients, list(_state(model).values())])
        if not _same(*results):
            raise Mismatch("its outputs, gradients or state differ from those of vqfast on probe batches")


def _gradients(leaf: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The gradients of a weighted sum of ``leaf``, zeros where it has none."""
    weights = torch.arange(leaf.numel(), device=leaf.device).cos().view(leaf.shape).to(leaf)

    def gradient(tensor: Tensor) -> Tensor:
        if not (leaf.requires_grad and tensor.requires_grad):
            return torch.zeros_like(tensor)
        return torch.autograd.grad(
            leaf, tensor, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]

    return list(map(gradient, inputs))


def _snap(value: float, candidates: set[float]) -> float:
    """The setting that a measured weight is up to rounding; else the weight itself."""
    nearest = min(candidates, key=lambda candidate: abs(candidate - value))
    return nearest if math.isclose(nearest, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else value


def _same(own: Any, other: Any) -> bool:
    """Whether tensors, or sequences of them, agree up to rounding, in dtype, shape and ``requires_grad``."""
    if not isinstance(own, Tensor):
        return len(own) == len(other) and all(map(_same, own, other))
    if (own.dtype, own.shape, own.requires_grad) != (other.dtype, other.shape, other.requires_grad):
        return False
    if not own.is_floating_point():
        return torch.equal(own, other)
    largest = float(other.detach().abs().max()) if other.numel() else 0.0
    return torch.allclose(own, other, rtol=TOLERANCE, atol=TOLERANCE**1.5 * largest)
