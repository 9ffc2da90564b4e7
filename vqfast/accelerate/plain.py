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
import operator
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.search import little
from vqfast.accelerate.swap import Fast, Swap
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


class Place(NamedTuple):
    """The tensor with the codes, by its dotted name: ``(K, D)``, or ``(D, K)`` if ``turned``."""

    name: str
    turned: bool

    def tensor(self, module: nn.Module) -> Tensor:
        """As the module has it."""
        return operator.attrgetter(self.name)(module)

    def turn(self, tensor: Tensor) -> Tensor:
        """From ``(K, D)`` to how the module has it, and back."""
        return tensor.T if self.turned else tensor


class Loss(NamedTuple):
    """Weights of the two losses of ``functional.quantize``."""

    codebook: float
    commitment: float


class Average(NamedTuple):
    """The moving average's tensors, ``(K,)`` and as the codes stand, by name, and its rule."""

    counts: str
    sums: str
    decay: float
    eps: float
    keeps_smoothed: bool  # whether the counts are kept as they were smoothed


class Recipe(NamedTuple):
    """What one method does in one mode with inputs of one number of dimensions.

    ``returns``: what it returns, with a name of ``VALUES`` or a ``Loss`` in the place of each tensor.
    ``learns``: whether a gradient reaches the codes. ``statistics``: whether those of ``functional.quantize``
    are needed. ``settings``: the plain attributes when it was probed; with others it doesn't hold.
    """

    place: Place
    channel_dim: int
    returns: object
    average: Average | None
    learns: bool
    statistics: bool
    settings: dict[str, object]


class Plan(NamedTuple):
    """Recipes by method, training and number of dimensions, why modes have none, and ``(K, D)``."""

    recipes: dict[tuple[str, bool, int], Recipe]
    note: str
    size: tuple[int, int]


def _one_hot(out: Quantized, codes: Tensor, channel_dim: int) -> Tensor:
    indices = out.indices.reshape(-1, 1)
    return codes.new_zeros(len(indices), len(codes), requires_grad=False).scatter_(1, indices, 1)


def _perplexity(out: Quantized, codes: Tensor, channel_dim: int) -> Tensor:
    """``functional.perplexity`` of counts at hand, which compiles to one graph."""
    return torch.special.entr(out.counts / out.indices.numel()).sum().exp().to(codes.dtype)


VALUES: dict[str, Callable[[Quantized, Tensor, int], Tensor]] = {
    "quantized": lambda out, codes, dim: out.quantized,
    "codes": lambda out, codes, dim: F.embedding(out.indices, codes).movedim(-1, dim),
    "indices": lambda out, codes, dim: out.indices,
    "indices (N,)": lambda out, codes, dim: out.indices.flatten(),
    "indices (N, 1)": lambda out, codes, dim: out.indices.reshape(-1, 1),
    "indices (B, -1)": lambda out, codes, dim: out.indices.reshape(len(out.indices), -1),
    "one-hot": _one_hot,
    "perplexity": _perplexity,
}


def _forward(original: Fast, self: nn.Module, *args, **kwargs):
    return _run("forward", original, self, *args, **kwargs)


def _straight_through(original: Fast, self: nn.Module, *args, **kwargs):
    return _run("straight_through", original, self, *args, **kwargs)


FAST = {"forward": _forward, "straight_through": _straight_through}


def _run(method: str, original: Fast, self: nn.Module, *args, **kwargs):
    """By the recipe where there is one that holds."""
    recipe = None
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        recipe = self.vqfast_plan.recipes.get((method, self.training, args[0].ndim))
    if recipe is None or little(args[0], recipe.place.turn(recipe.place.tensor(self))):
        return original(self, *args, **kwargs)
    if any(operator.attrgetter(name)(self) != was for name, was in recipe.settings.items()):
        return original(self, *args, **kwargs)
    if recipe.average and ranks.several():
        return original(self, *args, **kwargs)
    return _cook(recipe, self, args[0])


def _cook(recipe: Recipe, module: nn.Module, z: Tensor):
    """What the method returns for ``z``, by ours."""
    average, dim, turn = recipe.average, recipe.channel_dim, recipe.place.turn
    held = recipe.place.tensor(module)
    codes = turn(held if recipe.learns else held.detach())
    if average or recipe.place.turned:  # they move before backward; or else are copied by each step
        codes = codes.clone(memory_format=torch.contiguous_format)
    z = z.to(torch.promote_types(z.dtype, codes.dtype)).contiguous()
    out = quantize(z, codes, dim, recipe.statistics)
    if average:
        counts, sums = operator.attrgetter(average.counts, average.sums)(module)
        moved = _moved(average, counts, turn(sums), out)
        for tensor, value in zip((turn(held), counts, turn(sums)), moved, strict=True):
            tensor.data.copy_(value)

    def value(leaf: object) -> object:
        if isinstance(leaf, Loss):
            losses = zip(leaf, (out.codebook_loss, out.commitment_loss), strict=True)
            return sum(weight * loss for weight, loss in losses if weight).to(z.dtype)
        return VALUES[leaf](out, codes, dim) if isinstance(leaf, str) else leaf

    return _map(value, recipe.returns)


@torch.no_grad()
def _moved(average: Average, counts: Tensor, sums: Tensor, out: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, counts and sums after one step of the moving average (van den Oord et al. 2017, A.1)."""
    counts = average.decay * counts + (1 - average.decay) * out.counts
    sums = average.decay * sums + (1 - average.decay) * out.sums
    seen = counts.sum()
    smoothed = (counts + average.eps) / (seen + len(counts) * average.eps) * seen
    return sums / smoothed.unsqueeze(1), smoothed if average.keeps_smoothed else counts, sums


def _map(function: Callable[[object], object], tree: object) -> object:
    """``tree`` with ``function`` of its leaves."""
    if isinstance(tree, Loss) or not isinstance(tree, (tuple, list, dict)):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)((key, _map(function, value)) for key, value in tree.items())
    items = [_map(function, item) for item in tree]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def _leaves(tree: object) -> list[object]:
    leaves: list[object] = []
    _map(leaves.append, tree)
    return leaves


def _places(module: nn.Module) -> list[Place]:
    """Where the codes may be: in the only child with parameters; if there is none, in a tensor of its own."""
    cls = type(module)
    children = [pair for pair in module.named_children() if any(True for _ in pair[1].parameters())]
    if cls.__module__.partition(".")[0] == "torch" or len(children) > 1:
        return []
    if children:
        ((name, child),) = children
        tensor, named = getattr(child, "weight", None), LOOKS_LIKE_CODES.search(type(child).__name__)
        fits = type(child) is nn.Embedding or (named and isinstance(tensor, Tensor) and tensor.ndim == 2)
        return [Place(f"{name}.weight", False)] if fits else []
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    names = [name for name, tensor in tensors if tensor.ndim == 2 and tensor.is_floating_point()]
    named = [name for name in names if LOOKS_LIKE_ONE.search(cls.__name__) or LOOKS_LIKE_CODES.search(name)]
    return [Place(name, turned) for name in named for turned in (False, True)]


def prepare(module: nn.Module) -> Swap | None:
    """What to exchange in a quantiser; ``None`` for other modules."""
    methods = {name: fast for name, fast in FAST.items() if hasattr(type(module), name)}
    plan = getattr(module, "vqfast_plan", None) or _plan(module, list(methods))
    if plan is None or not (plan.recipes or LOOKS_LIKE_ONE.search(type(module).__name__)):
        return None
    refusal = "" if plan.recipes else plan.note
    return Swap(methods, lambda module: plan.size, lambda module: plan.note, refusal, plan)


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
    if codes.is_meta:
        return Plan({}, "its weights are on the meta device", tuple(codes.shape))
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
    return Plan(recipes, "; ".join(kept) or ("" if recipes else TAKES_NONE), tuple(codes.shape))


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


def _call(module: nn.Module, method: str, z: Tensor) -> object:
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
    out = quantize(z, codes, dim, statistics=True)
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

    returns = _map(identify, returned)
    average = _average(before, _state(probed), place, out, floats)
    leaves = _leaves(returns)
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
    if {codes, counts, sums} == set(moved):
        for rule in itertools.product(floats | {0.99}, floats | {0.0, 1e-5}, (False, True)):
            average = Average(counts, sums, *rule)
            ours = _moved(average, before[counts], turn(before[sums]), out)
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
    calls = {ours: lambda z: _cook(recipe, ours, z), theirs: lambda z: _call(theirs, method, z)}
    for batch in (3, 1, 4):
        x = _vectors(codes, (batch, *shape[1:]))
        results = []
        for model, call in calls.items():
            z, held = x.clone().requires_grad_(), place.tensor(model)
            tensors = [leaf for leaf in _leaves(call(z)) if leaf is not None]
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


def _same(ours: object, theirs: object) -> bool:
    """Equal but for rounding; in dtype, shape and whether there are gradients too."""
    if not isinstance(ours, Tensor):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if (ours.dtype, ours.shape, ours.requires_grad) != (theirs.dtype, theirs.shape, theirs.requires_grad):
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE**1.5 * largest)
