"""Quantisers in plain PyTorch, which circulate as copies with small variations: codes in an ``nn.Embedding``,
a buffer or a parameter, ``forward`` (or ``straight_through``) of one tensor.

None is known by name. A probe batch tells which convention a copy follows: where the channels stand, what it
returns in which shape, how its loss weighs, how its moving average moves. Then it must agree with ours on
more batches, in outputs, gradients and state; a mode that does not keeps its code. Checked with torch 2.13.

Whether a moving average is joined over ranks can't be seen by one of them: where there are several, training
with one keeps its code.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.acceleration.recipe import (
    FAST,
    VALUES,
    Average,
    Loss,
    Place,
    Plan,
    Recipe,
    averaged,
    cook,
    leaves_of,
    map_leaves,
)
from vqfast.acceleration.swap import Swap
from vqfast.functional import Quantized, quantize
from vqfast.nn import ranks

# of probes; -1 for the channels
SHAPES = [(2, -1, 3, 5), (2, 3, 5, -1), (2, -1, 7), (2, 7, -1), (11, -1), (2, -1, 2, 3, 5)]
OWN, SIMPLE = set(vars(nn.Module())), (bool, int, float, str, type(None))
TOLERANCE = 1e-4  # of the largest value: float32, summed in another order
TAKES_NONE = "it takes no single tensor of vectors"
LOOKS_LIKE_ONE = re.compile("quanti[sz]|vq|codebook", re.IGNORECASE)
LOOKS_LIKE_CODES = re.compile("embed|code|dict|centroid", re.IGNORECASE)


class Unfit(Exception):
    """Why a mode is left alone."""


def _places(module: nn.Module) -> list[Place]:
    """Where the codes may be: in the only child with parameters; if there is none, in a tensor of its own."""
    cls = type(module)
    children = [pair for pair in module.named_children() if any(True for _ in pair[1].parameters())]
    if cls.__module__.partition(".")[0] == "torch" or len(children) > 1:
        return []
    if children:
        ((name, child),) = children
        tensor = getattr(child, "weight", None)
        matrix = isinstance(tensor, Tensor) and tensor.ndim == 2
        fits = type(child) is nn.Embedding or (matrix and LOOKS_LIKE_CODES.search(type(child).__name__))
        return [Place(f"{name}.weight", False)] if fits else []
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    names = [name for name, tensor in tensors if tensor.ndim == 2 and tensor.is_floating_point()]
    named = [name for name in names if LOOKS_LIKE_ONE.search(cls.__name__) or LOOKS_LIKE_CODES.search(name)]
    return [Place(name, turned) for name in named for turned in (False, True)]


def prepare(module: nn.Module) -> Swap | None:
    """What to exchange in a quantiser; ``None`` for other modules."""
    methods = {name: fast for name, fast in FAST.items() if hasattr(type(module), name)}
    plan: Plan | None = getattr(module, "vqfast_plan", None) or _plan(module, list(methods))
    if plan is None or not (plan.recipes or LOOKS_LIKE_ONE.search(type(module).__name__)):
        return None
    refusal = "" if plan.recipes else plan.note
    return Swap(
        methods,
        lambda module: plan.size,
        note=lambda module: plan.note,
        refusal=lambda module: refusal,
        plan=plan,
    )


def _plan(module: nn.Module, methods: list[str]) -> Plan | None:
    """That of the first place that is the codes'; if none is, of the first that may be."""
    plans = []
    for place in _places(module):
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            plans.append(_probe(module, place, methods))
        if plans[-1].recipes:
            return plans[-1]
    return next((plan for plan in plans if plan.note != TAKES_NONE), plans[0] if plans else None)


def _probe(module: nn.Module, place: Place, methods: list[str]) -> Plan:
    """Which modes of a module are a quantiser's with the codes at ``place``."""
    recipes: dict[tuple[str, bool, int], Recipe] = {}
    reasons: dict[str, list[str]] = {}
    codes = place.turn(place.tensor(module))
    size = (codes.shape[0], codes.shape[1])
    if codes.is_meta:
        return Plan({}, "its weights are on the meta device", size)
    methods = [method for method in methods if method not in vars(module)]
    modes = itertools.product(methods, SHAPES)
    accepted = [(method, shape) for method, shape in modes if _takes(module, place, method, shape)]
    for (method, shape), training in itertools.product(accepted, (False, True)):
        key = method, training, len(shape)
        if key in recipes:
            continue
        try:
            if training and ranks.several() and any(True for _ in module.buffers()):
                raise Unfit("with several ranks its averages may be joined")
            recipe = _recipe(module, place, method, training, shape)
            _check(recipe, module, method, training, shape)
            recipes[key] = recipe
        except Unfit as reason:
            reasons.setdefault(f"{method} in {'training' if training else 'eval'}", []).append(str(reason))
    for method, training, _ in recipes:  # other shapes may have been refused
        reasons.pop(f"{method} in {'training' if training else 'eval'}", None)
    kept = [f"{mode} keeps its own code: {' or '.join(dict.fromkeys(why))}" for mode, why in reasons.items()]
    return Plan(recipes, "; ".join(kept) or ("" if recipes else TAKES_NONE), size)


def _takes(module: nn.Module, place: Place, method: str, shape: tuple[int, ...]) -> bool:
    """Whether a method takes vectors of that shape. The codes, which may be many, aren't copied for that."""
    held = place.tensor(module)
    channels = place.turn(held).shape[1]
    zeros = held.new_zeros([channels if length == -1 else length for length in shape])
    with torch.no_grad():
        try:
            getattr(copy.deepcopy(module, {id(held): held}).eval(), method)(zeros)
        except Exception:  # whatever a foreign module makes of it
            return False
    return True


def _vectors(codes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random float32 vectors whose nearest of the codes no rounding decides; ``shape`` as in ``SHAPES``."""
    grid = [length for length in shape if length != -1]
    drawn = torch.randn(4 * math.prod(grid), codes.shape[1]).to(codes)
    first, second = torch.cdist(drawn, codes).square().topk(2, largest=False).values.unbind(1)
    clearest = (second - first).topk(math.prod(grid)).indices
    return drawn[clearest].view(*grid, -1).movedim(-1, shape.index(-1)).contiguous()


def _call(module: nn.Module, method: str, z: Tensor) -> Any:
    try:
        return getattr(module, method)(z)
    except Exception as error:  # whatever a foreign module makes of it
        raise Unfit(f"it raises {type(error).__name__}: {error}") from error


def _copy(module: nn.Module, place: Place, training: bool) -> tuple[nn.Module, Tensor]:
    """A float32 copy that may be moved, and its codes: random ones of unequal lengths, the same each time.

    (With its own codes, of equal lengths maybe, or all alike, another metric could pass.)
    """
    copied = copy.deepcopy(module).float().train(training)
    held = place.tensor(copied)
    held.requires_grad_(isinstance(held, nn.Parameter))
    codes = place.turn(held.data)
    generator = torch.Generator().manual_seed(0)
    codes.copy_(torch.randn(codes.shape, generator=generator))
    codes.mul_(0.3 + torch.rand(len(codes), 1, generator=generator).to(codes))
    return copied, codes.clone()


def _settings(module: nn.Module) -> dict[str, object]:
    """Its plain attributes, and its children's, by their dotted names."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in OWN and isinstance(value, SIMPLE)
    }


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _recipe(module: nn.Module, place: Place, method: str, training: bool, shape: tuple[int, ...]) -> Recipe:
    """What one probe suggests.

    Raises:
        Unfit: it suggests nothing.
    """
    probed, codes = _copy(module, place, training)
    settings, before = _settings(probed), _state(probed)
    dim = -1 if shape[-1] == -1 else shape.index(-1)
    z, held = _vectors(codes, shape).requires_grad_(), place.tensor(probed)
    codes.requires_grad_(held.requires_grad)
    returned = _call(probed, method, z)
    if _settings(probed) != settings:
        raise Unfit("it changes its attributes")
    out = quantize(z, codes, channel_dim=dim, return_statistics=True)
    floats = {value for value in settings.values() if isinstance(value, float)}

    def identify(leaf: object) -> object:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            raise Unfit(f"it returns a {type(leaf).__name__}")
        to_z, to_codes = _gradients(leaf, z, held)
        to_codes = place.turn(to_codes)
        if leaf.ndim == 0 and leaf.requires_grad:
            (one,) = _gradients(out.codebook_loss, codes)
            (other,) = _gradients(out.commitment_loss, z)
            pairs = (to_codes, one), (to_z, other)
            found = [(x * unit).sum() / unit.square().sum().clamp(min=1e-30) for x, unit in pairs]
            return Loss(*(_snap(float(weight), {0.0, 1.0} | floats) for weight in found))
        for name, value in VALUES.items():
            ours = value(out, codes, dim)
            if _same(ours, leaf) and _same(_gradients(ours, z, codes), [to_z, to_codes]):
                return name
        raise Unfit("it returns what no quantiser by distance does")

    returns = map_leaves(identify, returned)
    average = _average(before, _state(probed), place, out, floats)
    leaves = leaves_of(returns)
    learns = any(leaf.codebook != 0 if isinstance(leaf, Loss) else leaf == "codes" for leaf in leaves)
    statistics = average is not None or "perplexity" in leaves
    return Recipe(place, dim, returns, average, learns, statistics, settings)


def _average(
    before: dict[str, Tensor], after: dict[str, Tensor], place: Place, out: Quantized, floats: set[float]
) -> Average | None:
    """The moving average that explains how the state moved, if it did.

    Raises:
        Unfit: none does.
    """
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    if not moved:
        return None
    codes, turn = place.name, place.turn
    shape = before[codes].shape
    counts = next((name for name in moved if before[name].shape == turn(before[codes]).shape[:1]), None)
    sums = next((name for name in moved if name != codes and before[name].shape == shape), None)
    if counts and sums and {codes, counts, sums} == set(moved):
        for rule in itertools.product(floats | {0.99}, floats | {0.0, 1e-5}, (False, True)):
            average = Average(counts, sums, *rule)
            ours = averaged(average, before[counts], turn(before[sums]), out)
            if _same(ours, (turn(after[codes]), after[counts], turn(after[sums]))):
                return average
    raise Unfit(f"it moves {', '.join(moved)} in a way of its own")


def _check(recipe: Recipe, module: nn.Module, method: str, training: bool, shape: tuple[int, ...]) -> None:
    """Both on one batch after the other.

    Raises:
        Unfit: they differ.
    """
    place = recipe.place
    (ours, codes), (theirs, _) = _copy(module, place, training), _copy(module, place, training)
    calls = {ours: lambda z: cook(recipe, ours, z), theirs: lambda z: _call(theirs, method, z)}
    for batch in (3, 1, 4):
        x = _vectors(codes, (batch, *shape[1:]))
        results = []
        for model, call in calls.items():
            z, held = x.clone().requires_grad_(), place.tensor(model)
            tensors = [leaf for leaf in leaves_of(call(z)) if leaf is not None]
            gradients = [_gradients(leaf, z, held) for leaf in tensors]
            results.append([tensors, gradients, list(_state(model).values())])
        if not _same(*results):
            raise Unfit("its results differ from a quantiser's")


def _gradients(leaf: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Those of a weighted sum of ``leaf``; zeros where it has none."""
    weights = torch.arange(leaf.numel(), device=leaf.device).cos().view(leaf.shape).to(leaf)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return [
        torch.autograd.grad(leaf, tensor, weights, **options)[0]
        if leaf.requires_grad and tensor.requires_grad
        else torch.zeros_like(tensor)
        for tensor in inputs
    ]


def _snap(value: float, candidates: set[float]) -> float:
    """A measured weight as the setting that it must come from."""
    nearest = min(candidates, key=lambda candidate: abs(candidate - value))
    return nearest if math.isclose(nearest, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else value


def _same(ours: Any, theirs: Any) -> bool:
    """Equal but for rounding; in dtype, shape and whether there are gradients too."""
    if not isinstance(ours, Tensor):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if (ours.dtype, ours.shape, ours.requires_grad) != (theirs.dtype, theirs.shape, theirs.requires_grad):
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE**1.5 * largest)
