"""Quantisers in plain PyTorch, which circulate as copies with small variations: an ``nn.Embedding`` of codes,
``forward`` (or ``straight_through``) of one tensor.

None is known by name. A probe batch tells which convention a copy follows: where the channels stand, what it
returns in which shape, how its loss weighs, how its moving average moves. Then it must agree with ours on
more batches, in outputs, gradients and state; a mode that does not keeps its code. Checked with torch 2.13.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.search import few
from vqfast.accelerate.swap import Fast, Swap
from vqfast.functional import Quantized, quantize

# of probes; -1 for the channels
SHAPES = [(2, -1, 3, 5), (2, 3, 5, -1), (2, -1, 7), (2, 7, -1), (11, -1), (2, -1, 2, 3, 5)]
TOLERANCE = 1e-4  # of the largest value: float32, summed in another order
LOOKS_LIKE_ONE = re.compile("quanti[sz]|vq|codebook", re.IGNORECASE)


class Unfit(Exception):
    """Why a mode is left alone."""


class Loss(NamedTuple):
    """Weights of the two losses of ``functional.quantize``."""

    codebook: float
    commitment: float


class Average(NamedTuple):
    """The moving average's tensors ``(K,)`` and ``(K, D)``, by name, and its rule."""

    counts: str
    sums: str
    decay: float
    eps: float
    keeps_smoothed: bool  # whether the counts are kept as they were smoothed


class Recipe(NamedTuple):
    """What one method does in one mode with inputs of one number of dimensions.

    ``returns``: what it returns, with a name of ``VALUES`` or a ``Loss`` in the place of each tensor.
    ``learns``: whether a gradient reaches the codes. ``statistics``: whether those of ``functional.quantize``
    are needed. ``settings``: the module's plain attributes when it was probed; with others it doesn't hold.
    """

    embedding: str
    channel_dim: int
    returns: object
    average: Average | None
    learns: bool
    statistics: bool
    settings: dict[str, object]


class Plan(NamedTuple):
    """Recipes by method, training and number of dimensions, and why modes have none."""

    recipes: dict[tuple[str, bool, int], Recipe]
    note: str


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
    if recipe is None or few(args[0], getattr(self, recipe.embedding).weight):
        return original(self, *args, **kwargs)
    if any(getattr(self, name) != was for name, was in recipe.settings.items()):
        return original(self, *args, **kwargs)
    return _cook(recipe, self, args[0])


def _cook(recipe: Recipe, module: nn.Module, z: Tensor):
    """What the method returns for ``z``, by ours."""
    weight = getattr(module, recipe.embedding).weight
    average, dim = recipe.average, recipe.channel_dim
    codes = weight if recipe.learns else weight.detach()
    codes = codes.clone() if average else codes  # they move before backward
    z = z.to(torch.promote_types(z.dtype, codes.dtype)).contiguous()
    out = quantize(z, codes, dim, recipe.statistics)
    if average:
        counts, sums = getattr(module, average.counts), getattr(module, average.sums)
        for tensor, moved in zip((weight, counts, sums), _moved(average, counts, sums, out), strict=True):
            tensor.data.copy_(moved)

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


def embedding_of(module: nn.Module) -> str | None:
    """The name of the only child with parameters, if that is an ``nn.Embedding``."""
    names = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    return names[0] if len(names) == 1 and type(getattr(module, names[0])) is nn.Embedding else None


def _size(module: nn.Module) -> tuple[int, int]:
    return tuple(getattr(module, embedding_of(module)).weight.shape)


def prepare(module: nn.Module) -> Swap | None:
    """What to exchange in a quantiser; ``None`` for other modules."""
    if embedding_of(module) is None or type(module).__module__.partition(".")[0] == "torch":
        return None
    methods = {name: fast for name, fast in FAST.items() if hasattr(type(module), name)}
    plan = getattr(module, "vqfast_plan", None)
    if plan is None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            plan = _probe(module, list(methods))
        if not plan.recipes and not LOOKS_LIKE_ONE.search(type(module).__name__):
            return None
    refusal = "" if plan.recipes else plan.note
    return Swap(methods, _size, lambda module: plan.note, refusal, plan)


def _probe(module: nn.Module, methods: list[str]) -> Plan:
    """Which modes of a module are a quantiser's."""
    recipes: dict[tuple[str, bool, int], Recipe] = {}
    reasons: dict[str, list[str]] = {}
    if getattr(module, embedding_of(module)).weight.is_meta:
        return Plan({}, "its weights are on the meta device")
    methods = [method for method in methods if method not in vars(module)]
    accepted = [(method, shape) for method in methods for shape in SHAPES if _takes(module, method, shape)]
    for (method, shape), training in itertools.product(accepted, (False, True)):
        key = method, training, len(shape)
        if key in recipes:
            continue
        try:
            recipe = _recipe(module, method, training, shape)
            _check(recipe, module, method, training, shape)
            recipes[key] = recipe
        except Unfit as reason:
            reasons.setdefault(f"{method} in {'training' if training else 'eval'}", []).append(str(reason))
    for method, training, _ in recipes:  # other shapes may have been refused
        reasons.pop(f"{method} in {'training' if training else 'eval'}", None)
    kept = [f"{mode} keeps its own code: {' or '.join(dict.fromkeys(why))}" for mode, why in reasons.items()]
    return Plan(recipes, "; ".join(kept) or ("" if recipes else "it takes no single tensor of vectors"))


def _takes(module: nn.Module, method: str, shape: tuple[int, ...]) -> bool:
    """Whether a method takes vectors of that shape. The codes, which may be many, aren't copied for that."""
    weight = getattr(module, embedding_of(module)).weight
    probed = copy.deepcopy(module, {id(weight): weight}).eval()
    with torch.no_grad():
        try:
            _call(probed, method, weight.new_zeros(_sizes(shape, weight)))
        except Unfit:
            return False
    return True


def _sizes(shape: tuple[int, ...], weight: Tensor) -> list[int]:
    return [weight.shape[1] if length == -1 else length for length in shape]


def _vectors(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random float32 vectors whose nearest of the codes no rounding decides; ``shape`` as in ``SHAPES``."""
    grid = [length for length in shape if length != -1]
    drawn = torch.randn(4 * math.prod(grid), weight.shape[1]).to(weight)
    first, second = torch.cdist(drawn, weight.detach()).square().topk(2, largest=False).values.unbind(1)
    clearest = (second - first).topk(math.prod(grid)).indices
    return drawn[clearest].view(*grid, -1).movedim(-1, shape.index(-1)).contiguous()


def _call(module: nn.Module, method: str, z: Tensor) -> object:
    try:
        return getattr(module, method)(z)
    except Exception as error:  # whatever a foreign module makes of it
        raise Unfit(f"it raises {type(error).__name__}: {error}") from error


def _copy(module: nn.Module, training: bool) -> tuple[nn.Module, Tensor]:
    """A float32 copy that may be moved, and its codes: random ones of unequal lengths, the same each time.

    (With its own codes, of equal lengths maybe, or all alike, another metric could pass.)
    """
    copied = copy.deepcopy(module).float().train(training)
    weight = getattr(copied, embedding_of(module)).weight.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(weight.shape, generator=generator)
    weight.data.copy_(codes * (0.3 + torch.rand(len(codes), 1, generator=generator)))
    return copied, weight


def _settings(module: nn.Module) -> dict[str, object]:
    """Its plain attributes."""
    own, simple = vars(nn.Module()), (bool, int, float, str, type(None))
    return {name: x for name, x in vars(module).items() if name not in own and isinstance(x, simple)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _recipe(module: nn.Module, method: str, training: bool, shape: tuple[int, ...]) -> Recipe:
    """What one probe suggests.

    Raises:
        Unfit: it suggests nothing.
    """
    probed, weight = _copy(module, training)
    settings, before = _settings(probed), _state(probed)
    dim = -1 if shape[-1] == -1 else shape.index(-1)
    z, codes = _vectors(weight, shape).requires_grad_(), weight.detach().clone().requires_grad_()
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
        to_z, to_codes = _gradients(leaf, z, weight)
        if leaf.ndim == 0 and leaf.requires_grad:
            (one,) = _gradients(out.codebook_loss, codes)
            (other,) = _gradients(out.commitment_loss, z)
            found = (to_codes * one).sum() / one.square().sum(), (to_z * other).sum() / other.square().sum()
            return Loss(*(_snap(float(weight), {0.0, 1.0} | floats) for weight in found))
        for name, value in VALUES.items():
            ours = value(out, codes, dim)
            if _same(ours, leaf) and _same(_gradients(ours, z, codes), [to_z, to_codes]):
                return name
        raise Unfit("it returns what no quantiser by distance does")

    returns = _map(identify, returned)
    average = _average(before, _state(probed), f"{embedding_of(module)}.weight", out, floats)
    leaves = _leaves(returns)
    learns = any(leaf.codebook != 0 if isinstance(leaf, Loss) else leaf == "codes" for leaf in leaves)
    statistics = average is not None or "perplexity" in leaves
    return Recipe(embedding_of(module), dim, returns, average, learns, statistics, settings)


def _average(
    before: dict[str, Tensor], after: dict[str, Tensor], codes: str, out: Quantized, floats: set[float]
) -> Average | None:
    """The moving average that explains how the state moved, if it did.

    Raises:
        Unfit: none does.
    """
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    if not moved:
        return None
    counts = next((name for name in moved if before[name].shape == before[codes].shape[:1]), None)
    sums = next((name for name in moved if name != codes and before[name].shape == before[codes].shape), None)
    if {codes, counts, sums} == set(moved):
        for rule in itertools.product(floats | {0.99}, floats | {0.0, 1e-5}, (False, True)):
            average = Average(counts, sums, *rule)
            ours = _moved(average, before[counts], before[sums], out)
            if _same(ours, (after[codes], after[counts], after[sums])):
                return average
    raise Unfit(f"it moves {', '.join(moved)} in a way of its own")


def _check(recipe: Recipe, module: nn.Module, method: str, training: bool, shape: tuple[int, ...]) -> None:
    """Both on one batch after the other.

    Raises:
        Unfit: they differ.
    """
    (ours, codes), (theirs, _) = _copy(module, training), _copy(module, training)
    codes = codes.detach().clone()
    calls = {ours: lambda z: _cook(recipe, ours, z), theirs: lambda z: _call(theirs, method, z)}
    for batch in (3, 1, 4):
        x = _vectors(codes, (batch, *shape[1:]))
        results = []
        for model, call in calls.items():
            z, weight = x.clone().requires_grad_(), getattr(model, recipe.embedding).weight
            tensors = [leaf for leaf in _leaves(call(z)) if leaf is not None]
            gradients = [_gradients(leaf, z, weight) for leaf in tensors]
            results.append([tensors, gradients, list(_state(model).values())])
        if not _same(*results):
            raise Unfit("its results differ from a quantiser's")


def _gradients(leaf: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Those of a weighted sum of ``leaf``; zeros where it has none."""
    if not leaf.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    weights = torch.arange(leaf.numel(), device=leaf.device).cos().view(leaf.shape).to(leaf)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(leaf, inputs, weights, **options))


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
