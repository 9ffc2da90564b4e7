"""What a quantiser in plain PyTorch does, as ``probing`` found it, and the same done by vqfast."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.acceleration.replacement import Method
from vqfast.acceleration.search import too_small
from vqfast.functional import Quantized, quantize
from vqfast.nn import ranks


class Place(NamedTuple):
    """Where a module keeps its codebook.

    Attributes:
        name: the dotted name of the tensor.
        transposed: whether it is ``(D, K)``, not ``(K, D)``.
    """

    name: str
    transposed: bool

    def tensor(self, module: nn.Module) -> Tensor:
        """The tensor itself, as the module has it."""
        tensor: Tensor = operator.attrgetter(self.name)(module)
        return tensor

    def turn(self, tensor: Tensor) -> Tensor:
        """Turns a tensor like the module's into ``(K, D)``, and back."""
        return tensor.T if self.transposed else tensor


class Loss(NamedTuple):
    """A weighted sum of the two losses of ``functional.quantize``, by its weights."""

    codebook: float
    commitment: float


class Average(NamedTuple):
    """An exponential moving average that a module keeps, and its rule.

    Attributes:
        counts: the name of the tensor of counts ``(K,)``.
        sums: the name of the tensor of sums, of the codebook's shape.
        decay: the weight of the past.
        eps: what smoothing adds to each count.
        keeps_smoothed: whether the counts are stored as they were smoothed.
    """

    counts: str
    sums: str
    decay: float
    eps: float
    keeps_smoothed: bool


class Behaviour(NamedTuple):
    """What one method of a quantiser does, in training or in evaluation, with one number of dimensions.

    Attributes:
        place: where the codebook is.
        channel_dim: where the channels of its input stand.
        returns: what it returns, with a name of ``VALUES`` or a ``Loss`` in the place of each tensor.
        average: the moving average that a call moves, if it does.
        learns: whether a gradient reaches the codebook.
        statistics: whether the counts and sums of ``functional.quantize`` are needed.
        settings: the module's plain attributes when it was probed. With others, it may behave differently.
    """

    place: Place
    channel_dim: int
    returns: object
    average: Average | None
    learns: bool
    statistics: bool
    settings: dict[str, object]


class Behaviours(NamedTuple):
    """All that is known of a quantiser.

    Attributes:
        known: behaviours by method, whether it is training, and number of dimensions of the input.
        note: why other modes keep their own code; else empty.
        size: ``(K, D)``.
    """

    known: dict[tuple[str, bool, int], Behaviour]
    note: str
    size: tuple[int, int]


def _one_hot(out: Quantized, codebook: Tensor, channel_dim: int) -> Tensor:
    indices = out.indices.reshape(-1, 1)
    return codebook.new_zeros(len(indices), len(codebook), requires_grad=False).scatter_(1, indices, 1)


def _perplexity(out: Quantized, codebook: Tensor, channel_dim: int) -> Tensor:
    """``functional.perplexity`` from counts that are there already; it compiles to one graph."""
    perplexity: Tensor = torch.special.entr(out.counts / out.indices.numel()).sum().exp()
    return perplexity.to(codebook.dtype)


# What a method may return, by name.
VALUES: dict[str, Callable[[Quantized, Tensor, int], Tensor]] = {
    "quantized": lambda out, codebook, dim: out.quantized,
    "code vectors": lambda out, codebook, dim: F.embedding(out.indices, codebook).movedim(-1, dim),
    "indices": lambda out, codebook, dim: out.indices,
    "indices (N,)": lambda out, codebook, dim: out.indices.flatten(),
    "indices (N, 1)": lambda out, codebook, dim: out.indices.reshape(-1, 1),
    "indices (B, -1)": lambda out, codebook, dim: out.indices.reshape(len(out.indices), -1),
    "one-hot": _one_hot,
    "perplexity": _perplexity,
}


def _forward(original: Method, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _run("forward", original, self, *args, **kwargs)


def _straight_through(original: Method, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _run("straight_through", original, self, *args, **kwargs)


METHODS = {"forward": _forward, "straight_through": _straight_through}


def _run(name: str, original: Method, self: Any, *args: Any, **kwargs: Any) -> Any:
    """A call by vqfast where the method's behaviour is known for it, else by the module's own code."""
    behaviour = None
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        behaviour = self.vqfast_behaviours.known.get((name, self.training, args[0].ndim))
    if behaviour is None or too_small(args[0], behaviour.place.turn(behaviour.place.tensor(self))):
        return original(self, *args, **kwargs)
    if any(operator.attrgetter(name)(self) != was for name, was in behaviour.settings.items()):
        return original(self, *args, **kwargs)
    if behaviour.average and ranks.several():
        return original(self, *args, **kwargs)
    return perform(behaviour, self, args[0])


def perform(behaviour: Behaviour, module: nn.Module, z_e: Tensor) -> Any:
    """Does by vqfast what the method does with ``z_e``, and returns what it returns."""
    average, dim, turn = behaviour.average, behaviour.channel_dim, behaviour.place.turn
    held = behaviour.place.tensor(module)
    codebook = turn(held if behaviour.learns else held.detach())
    # an average moves the codebook before backward reads it; a transposed one would be copied by each op
    if average or behaviour.place.transposed:
        codebook = codebook.clone(memory_format=torch.contiguous_format)
    z_e = z_e.to(torch.promote_types(z_e.dtype, codebook.dtype)).contiguous()
    out = quantize(z_e, codebook, channel_dim=dim, return_statistics=behaviour.statistics)
    if average:
        counts, sums = operator.attrgetter(average.counts, average.sums)(module)
        after = averaged(average, counts, turn(sums), out)
        for tensor, moved in zip((turn(held), counts, turn(sums)), after, strict=True):
            tensor.data.copy_(moved)

    def value(leaf: object) -> object:
        if isinstance(leaf, Loss):
            losses = zip(leaf, (out.codebook_loss, out.commitment_loss), strict=True)
            total: Any = sum(weight * loss for weight, loss in losses if weight)
            return total.to(z_e.dtype)
        return VALUES[leaf](out, codebook, dim) if isinstance(leaf, str) else leaf

    return map_leaves(value, behaviour.returns)


@torch.no_grad()
def averaged(average: Average, counts: Tensor, sums: Tensor, out: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """Codebook, counts and sums after one step of the moving average (van den Oord et al. 2017, A.1).

    It is computed in float32 or wider: float16 can't hold the number of all vectors.
    """
    wide = torch.promote_types(counts.dtype, torch.float32)
    counts, sums = counts.to(wide), sums.to(wide)
    counts = average.decay * counts + (1 - average.decay) * out.counts
    sums = average.decay * sums + (1 - average.decay) * out.sums
    seen = counts.sum()
    smoothed = (counts + average.eps) / (seen + len(counts) * average.eps) * seen
    return sums / smoothed.unsqueeze(1), smoothed if average.keeps_smoothed else counts, sums


def map_leaves(function: Callable[[Any], object], tree: Any) -> Any:
    """``tree`` of tuples, lists and dictionaries, with ``function`` applied to each of its leaves."""
    if isinstance(tree, Loss) or not isinstance(tree, (tuple, list, dict)):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)((key, map_leaves(function, value)) for key, value in tree.items())
    items = [map_leaves(function, item) for item in tree]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def leaves_of(tree: object) -> list[Any]:
    """The leaves of a tree, in order."""
    leaves: list[Any] = []
    map_leaves(leaves.append, tree)
    return leaves
