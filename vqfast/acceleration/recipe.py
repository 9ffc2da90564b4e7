"""What a quantiser in plain PyTorch does, as ``plain`` found it, and how it is done by ours."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.acceleration.search import little
from vqfast.acceleration.swap import Fast
from vqfast.functional import Quantized, quantize
from vqfast.nn import ranks


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


def _forward(original: Fast, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _run("forward", original, self, *args, **kwargs)


def _straight_through(original: Fast, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _run("straight_through", original, self, *args, **kwargs)


FAST = {"forward": _forward, "straight_through": _straight_through}


def _run(method: str, original: Fast, self: Any, *args: Any, **kwargs: Any) -> Any:
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
    return cook(recipe, self, args[0])


def cook(recipe: Recipe, module: nn.Module, z: Tensor) -> Any:
    """What the method returns for ``z``, by ours."""
    average, dim, turn = recipe.average, recipe.channel_dim, recipe.place.turn
    held = recipe.place.tensor(module)
    codes = turn(held if recipe.learns else held.detach())
    if average or recipe.place.turned:  # they move before backward; or else are copied by each step
        codes = codes.clone(memory_format=torch.contiguous_format)
    z = z.to(torch.promote_types(z.dtype, codes.dtype)).contiguous()
    out = quantize(z, codes, channel_dim=dim, return_statistics=recipe.statistics)
    if average:
        counts, sums = operator.attrgetter(average.counts, average.sums)(module)
        after = averaged(average, counts, turn(sums), out)
        for tensor, moved in zip((turn(held), counts, turn(sums)), after, strict=True):
            tensor.data.copy_(moved)

    def value(leaf: object) -> object:
        if isinstance(leaf, Loss):
            losses = zip(leaf, (out.codebook_loss, out.commitment_loss), strict=True)
            total: Any = sum(weight * loss for weight, loss in losses if weight)
            return total.to(z.dtype)
        return VALUES[leaf](out, codes, dim) if isinstance(leaf, str) else leaf

    return map_leaves(value, recipe.returns)


@torch.no_grad()
def averaged(average: Average, counts: Tensor, sums: Tensor, out: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, counts and sums after one step of the moving average (van den Oord et al. 2017, A.1).

    In float32 at the least: float16 can't hold the number of all vectors.
    """
    wide = torch.promote_types(counts.dtype, torch.float32)
    counts, sums = counts.to(wide), sums.to(wide)
    counts = average.decay * counts + (1 - average.decay) * out.counts
    sums = average.decay * sums + (1 - average.decay) * out.sums
    seen = counts.sum()
    smoothed = (counts + average.eps) / (seen + len(counts) * average.eps) * seen
    return sums / smoothed.unsqueeze(1), smoothed if average.keeps_smoothed else counts, sums


def map_leaves(function: Callable[[Any], object], tree: Any) -> Any:
    """``tree`` with ``function`` of its leaves."""
    if isinstance(tree, Loss) or not isinstance(tree, (tuple, list, dict)):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)((key, map_leaves(function, value)) for key, value in tree.items())
    items = [map_leaves(function, item) for item in tree]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def leaves_of(tree: object) -> list[Any]:
    leaves: list[Any] = []
    map_leaves(leaves.append, tree)
    return leaves
