"""A prior that is somebody's own network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from vqfast.checks import check_integer
from vqfast.priors.base import CausalPrior
from vqfast.sampling import parallel
from vqfast.sampling.program import Program
from vqfast.sampling.request import Given
from vqfast.sampling.trace import graph as front
from vqfast.sampling.trace.fuse import NotCausal
from vqfast.sampling.trace.lower import Lowered, Lowering
from vqfast.sampling.trace.values import by_position, shape_of

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.25}
_PROBES = 16  # positions whose code is changed to find who sees them
_BATCH = 2  # of a trace


class TracedPrior(CausalPrior):
    """A causal network of any make, sampled as a program; ``program_of`` makes it.

    Its ``forward`` is the network's. The program is made anew when the network's weights have changed.
    """

    call: Callable[..., Tensor]
    lowered: Lowered

    def __init__(
        self,
        call: Callable[..., Tensor],
        num_embeddings: int,
        shape: tuple[int, ...],
        labels: int | None,
        condition: Tensor | None,
        predicts: str,
    ) -> None:
        super().__init__(num_embeddings, labels, 0)
        self.networks = nn.ModuleList(_modules(call))
        self.__dict__["call"] = call  # not as a module, of which it may be one already
        self.shape, self.ndim = shape, len(shape)
        self.example = condition
        self.behind = int(predicts == "next")
        self.graphs: dict[tuple[int, ...], fx.Graph] = {}
        self.modes: list[bool] = []  # those, and the weights, that were lowered
        self.before: list[Tensor] = []
        self.lower()
        self.any_shape = condition is None and self._runs_at(tuple(n + i + 1 for i, n in enumerate(shape)))
        if not self.any_shape:
            self._verify(self.shape, 3)

    # What every prior does

    def check_conditioning(
        self, batch: int, spatial: tuple[int, ...], labels: Given, condition: Given
    ) -> None:
        """See ``CausalPrior``; the map is like the example, and shapes are those that the network takes."""
        super().check_conditioning(batch, spatial, labels, None)
        if spatial != self.shape and not self.any_shape:
            raise ValueError(
                f"shape is {spatial}; want {self.shape}, the only one that this network was seen to take"
            )
        wanted = None if self.example is None else (batch, *self.example.shape[1:])
        if callable(condition) and wanted is not None:
            return
        if condition is not None and not isinstance(condition, Tensor):
            raise TypeError(f"condition is a {type(condition).__name__}; want a tensor")
        got = None if condition is None else tuple(condition.shape)
        if got != wanted:
            raise ValueError(f"condition has shape {got}; want {wanted}")

    def check_known(self, known: Given) -> None:
        """Raises ValueError where the network predicts what is next and the first code isn't known."""
        if (
            self.behind
            and not callable(known)
            and (known is None or bool((known.flatten(1)[:, 0] < 0).any()))
        ):
            raise ValueError("known lacks first codes; want them: this network predicts what comes after one")

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the network is given."""
        return condition.to(next(self.parameters()).device)

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``; where the network predicts what is next, those of the first code are zero."""
        codes = codes if self.ndim == 2 else codes[:, 0]
        logits = self.call(*(value for value in (codes, labels, condition) if value is not None))
        if self.behind:
            logits = torch.cat([torch.zeros_like(logits[..., :1]), logits[..., :-1]], dim=-1)
        return logits if self.ndim == 2 else logits.unsqueeze(2)

    @torch.inference_mode(False)  # weights of a program are ordinary tensors
    @torch.no_grad()
    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``; verified against the network whenever it is made."""
        if self._changed():
            self.graphs.clear()
            self.lowered = self._lower()
            self._verify(self.shape, _BATCH)
            self.modes, self.before = self._modes(), [tensor.detach().clone() for tensor in self._tensors()]
        return self.lowered.program, self.lowered.weights

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """See ``CausalPrior``: everything that is known before the codes and differs from place to place."""
        return self._maps(self._inputs(codes, labels, condition))

    # Behind it

    def _inputs(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> dict[str, Tensor]:
        codes = codes if codes.ndim == self.ndim + 1 else codes[:, 0]
        given = {"codes": codes, "labels": labels, "condition": condition}
        return {name: value for name, value in given.items() if value is not None}

    def _random(self, shape: tuple[int, ...], batch: int) -> dict[str, Tensor]:
        """Random codes and labels, and the example."""
        device, generator = next(self.parameters()).device, torch.Generator().manual_seed(batch)
        codes = torch.randint(self.num_embeddings, (batch, *shape), generator=generator)
        labels = torch.arange(batch) * 7 % self.num_classes if self.num_classes else None
        example = None if self.example is None else self.example[:1].expand(batch, *self.example.shape[1:])
        inputs = self._inputs(codes, labels, None if example is None else example.clone())
        return {name: value.to(device) for name, value in inputs.items()}

    def _tensors(self) -> list[Tensor]:
        """Everything of the network's that a program depends on."""
        graphs = list(self.graphs.values())[:1]  # the one that was lowered
        found = [
            *self.parameters(),
            *self.buffers(),
            *(t for graph in graphs for t in front.constants(graph)),
        ]
        return list({id(tensor): tensor for tensor in found}.values())

    def _modes(self) -> list[bool]:
        return [module.training for module in self.networks.modules()]

    def _changed(self) -> bool:
        """Whether weights or modes are others than those that were lowered; ``.data`` bumps no version."""
        now = self._tensors()
        return (
            self.modes != self._modes()
            or len(now) != len(self.before)
            or any(
                (new.dtype, new.device) != (old.dtype, old.device) or not torch.equal(new, old)
                for new, old in zip(now, self.before, strict=True)
            )
        )

    def _graph(self, inputs: dict[str, Tensor]) -> fx.Graph:
        """The network's graph for inputs of such shapes; the first one and the last two are kept."""
        key = tuple(inputs["codes"].shape)
        if key not in self.graphs:
            result = self.call(*inputs.values())  # its errors are its own; it may mask weights in place
            if not isinstance(result, Tensor):
                raise TypeError(f"call returns a {type(result).__name__}; want a tensor of logits")
            try:
                self.graphs[key] = front.trace(self.call, tuple(inputs.values()))
            except Exception as error:
                raise ValueError(f"the network can't be traced: {error}") from error
            while len(self.graphs) > 3:
                del self.graphs[list(self.graphs)[1]]
        return self.graphs[key]

    def _lower(self) -> Lowered:
        inputs = self._random(self.shape, _BATCH)
        graph = self._graph(inputs)
        try:
            return Lowering(graph, inputs, self.num_embeddings, self.num_classes, self.behind).run()
        except NotCausal as error:
            raise ValueError(f"the network isn't causal: {error}; {self._who_sees_later()}") from None

    @torch.inference_mode(False)
    @torch.no_grad()
    def _maps(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """The program's conditioning map, ``(B, C, H, W)``."""
        if not self.lowered.maps:
            return None
        first = list(next(iter(self.graphs.values())).nodes)
        nodes = list(self._graph(inputs).nodes)
        if [node.target for node in nodes] != [node.target for node in first]:
            raise ValueError(
                "the network does other operations for another batch or shape; want the same ones"
            )
        sizes = dict(zip("byx", (len(inputs["codes"]), *([1, *inputs["codes"].shape[1:]][-2:])), strict=True))
        values = front.evaluate([nodes[made.index] for made in self.lowered.maps], tuple(inputs.values()))
        parts = []
        for made, value in zip(self.lowered.maps, values, strict=True):
            if made.tap is not None:
                ones = torch.ones(*sizes.values(), 1, device=inputs["codes"].device)
                parts.append(parallel.shifted(ones, made.tap))
                continue
            layout = tuple(tuple((name, sizes.get(name, n)) for name, n in dim) for dim in made.layout)
            parts.append(by_position(value.expand(shape_of(layout)), layout))
        weight = next(iter(self.lowered.weights.values()))
        return torch.cat(parts, dim=3).movedim(3, 1).to(weight.dtype)

    @torch.no_grad()
    def _difference(self, shape: tuple[int, ...], batch: int) -> float:
        """By how much the program's log-probabilities differ from the network's, in tolerances."""
        inputs = self._random(shape, batch)
        codes = inputs["codes"].view(batch, *([1, *shape][-2:]))
        given = inputs.get("labels"), inputs.get("condition")
        wanted = self.grid_logits(codes, *given)
        program, weights = self.lowered.program, self.lowered.weights
        got = parallel.logits(program, weights, codes, given[0], self._maps(inputs))
        tolerance = _TOLERANCE[wanted.dtype] * max(1, float(wanted.abs().max()))
        parts = [logits.log_softmax(1).flatten(2)[..., self.behind :] for logits in (wanted, got)]
        return float((parts[0] - parts[1]).abs().where(parts[0] != parts[1], 0).max()) / tolerance

    def _verify(self, shape: tuple[int, ...], batch: int) -> None:
        difference = self._difference(shape, batch)
        if not difference <= 1:  # NaN isn't
            raise ValueError(
                f"the program isn't the network: its log-probabilities for {batch} samples of shape {shape} "
                f"are off by {difference:.3g} times the tolerance; {self._who_sees_later()}"
            )

    def _runs_at(self, shape: tuple[int, ...]) -> bool:
        """Whether the network takes that shape too, and the program is right there."""
        try:
            return self._difference(shape, 3) <= 1
        except Exception:  # whatever the network says
            return False

    @torch.no_grad()
    def _who_sees_later(self) -> str:
        """An output that depends on a code that it can't have seen, by changing codes."""
        inputs = self._random(self.shape, 1)
        codes, rest = inputs["codes"], [value for name, value in inputs.items() if name != "codes"]
        before, size = self.call(codes, *rest).flatten(2), codes[0].numel()
        for changed in sorted({size - 1 - i * (size - 1) // max(1, _PROBES - 1) for i in range(_PROBES)}):
            other = codes.clone()
            other.view(-1)[changed] = (other.view(-1)[changed] + 1) % self.num_embeddings
            differs = (self.call(other, *rest).flatten(2) != before).any(1)[0]
            seen = differs[: changed + 1 - self.behind].nonzero()
            if len(seen):
                by, at = (
                    tuple(int(n) for n in torch.unravel_index(torch.tensor(i), self.shape))
                    for i in (int(seen[0]), changed)
                )
                return f"its output at {by} sees the code at {at}"
        return "no output was seen to depend on a later code"


def _modules(call: Callable[..., Tensor]) -> list[nn.Module]:
    """The modules that a call is, or that the function reads."""
    if isinstance(call, nn.Module):
        return [call]
    if isinstance(call, partial):
        return [*_modules(call.func), *(arg for arg in call.args if isinstance(arg, nn.Module))]
    found: list[Any] = [getattr(call, "__self__", None)]
    function = getattr(call, "__func__", call)
    found += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if hasattr(function, "__code__"):
        found += [function.__globals__.get(name) for name in function.__code__.co_names]
    return [module for module in found if isinstance(module, nn.Module)]


def program_of(
    call: Callable[..., Tensor],
    num_embeddings: int,
    shape: tuple[int, ...],
    labels: int | None = None,
    condition: Tensor | None = None,
    predicts: str = "own",
) -> TracedPrior:
    """A causal network of any make as a prior that is sampled fast.

    The network is traced, its operations are turned into a sampling program, and the program is compared with
    it on random codes, for two batches and, where the network allows, two shapes. Weights may change
    afterwards: the next sample has them.

    Args:
        call: a module in evaluation mode, or a function of one: ``call(codes)``, with labels ``(B,)`` and the
            condition after them if there are any, returns logits (or log-probabilities)
            ``(B, num_embeddings, *shape)`` of codes ``(B, *shape)``.
        num_embeddings: K, the number of codes.
        shape: of a grid of codes, ``(H, W)`` or ``(T,)``.
        labels: how many class labels the network knows; ``None`` for none.
        condition: an example of what else the network is given, ``(1, ...)``; ``None`` for nothing.
        predicts: ``"own"``: the logits at a position are for its own code. ``"next"``: for the next one of a
            sequence; the first code of each sample is then to be ``known``.

    Returns:
        A prior like ``PixelCNN``, whose ``forward`` is the network's.

    Raises:
        TypeError: an argument has the wrong type, ``call`` reads no weights or doesn't return a tensor.
        ValueError: an argument is out of range; the network isn't causal, does what no program can (all of it
            is listed, with the lines that do it), or isn't what the program made of it.
    """
    check_integer("num_embeddings", num_embeddings)
    if not callable(call) or not any(list(module.parameters()) for module in _modules(call)):
        raise TypeError(f"call is {call!r}; want a module with weights, or a function that reads one")
    shape = tuple(shape)
    for size in shape:
        check_integer(f"a size of shape {shape}", size)
    if len(shape) not in (1, 2):
        raise ValueError(f"shape is {shape}; want (H, W) or (T,)")
    if predicts not in ("own", "next") or (predicts == "next" and len(shape) == 2):
        raise ValueError(f"predicts is {predicts!r}; want 'own', or 'next' for sequences")
    if condition is not None and not isinstance(condition, Tensor):
        raise TypeError(f"condition is a {type(condition).__name__}; want a tensor, an example")
    return TracedPrior(call, num_embeddings, shape, labels, condition, predicts)
