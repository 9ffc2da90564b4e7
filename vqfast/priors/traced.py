"""Any causal network as a prior: it is traced, lowered to a program, and compared with the program."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from vqfast.priors.base import CausalPrior
from vqfast.priors.calls import check_call, copied, modules_of
from vqfast.priors.causality import later_code_seen
from vqfast.priors.changes import State, differing, kept, state_of
from vqfast.priors.frozen import ProgramPrior, described
from vqfast.sampling import parallel
from vqfast.sampling.batches import axes_of
from vqfast.sampling.program import Program
from vqfast.sampling.request import Given, GivenLabels
from vqfast.sampling.trace.fuse import NotCausal, same_steps
from vqfast.sampling.trace.graph import constants, needed_by, trace
from vqfast.sampling.trace.lower import Lowered, lowered
from vqfast.sampling.trace.maps import Map, map_of

# of log-probabilities, relative to the largest logit
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.25}
_NEVER_DRAWN = -50.0  # a log-probability
_TRACED_BATCH, _OTHER_BATCH, _LARGE_GRID = 2, 3, 4096
_KEPT_GRAPHS = 3


class TracedPrior(CausalPrior):
    """A causal network of any make, sampled as a program. ``program_of`` makes it.

    Its ``forward`` is the network's. When the network has changed, it is lowered again. The program is
    compared with the network at each new shape. A copy is lowered anew when it is used.
    """

    is_program = True
    call: Callable[..., Tensor]

    def __init__(
        self,
        call: Callable[..., Tensor],
        num_embeddings: int,
        shape: tuple[int, ...],
        *,
        num_quantizers: int | None,
        num_mixtures: int | None,
        num_classes: int | None,
        condition: Tensor | None,
        predicts: str,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels=0)
        self.num_quantizers, self.num_mixtures = num_quantizers, num_mixtures
        self.networks = nn.ModuleList(modules_of(call))
        self.__dict__["call"] = call  # not registered as a module, since self.networks has it
        self.shape, self.ndim = shape, len(shape)
        self.example = condition
        self.lead = int(predicts == "next")  # by how many positions logits precede their code
        self._forget()
        check_call(call, self._random_inputs(shape, _TRACED_BATCH), num_embeddings, num_classes, num_mixtures)
        self.lower()
        self.any_shape = condition is None and self._takes_another_shape()

    def _forget(self) -> None:
        """Forgets all that follows from the network."""
        self.lowered: Lowered | None = None
        self.graphs: dict[tuple[int, ...], fx.Graph] = {}
        self.other_maps: dict[fx.Graph, list[Map]] = {}  # of graphs with other operations
        self.state: State = {}  # of the network when it was lowered
        self.volatile: set[str] = set()  # paths in it at which the network writes itself
        self.verified: set[tuple[tuple[int, ...], ...]] = set()  # shapes of inputs, without the batch

    def __getstate__(self) -> dict[str, Any]:
        derived = ("lowered", "graphs", "other_maps", "state", "volatile", "verified")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.networks = nn.ModuleList(modules_of(self.call))
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedPrior:
        state = self.__getstate__()
        state["call"] = copied(self.call, memo)
        state = {name: part if name == "call" else copy.deepcopy(part, memo) for name, part in state.items()}
        result = memo[id(self)] = type(self).__new__(type(self))
        result.__setstate__(state)
        return result

    def condition_shape(self, num: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """See ``CausalPrior``: that of the example."""
        return None if self.example is None else (num, *self.example.shape[1:])

    def check_conditioning(
        self, num: int, shape: tuple[int, ...], labels: GivenLabels, condition: Given
    ) -> None:
        """See ``CausalPrior``; at another shape, the network takes what condition it wants."""
        wanted = self.condition_shape(num, shape)
        if wanted and shape != self.shape and isinstance(condition, Tensor):
            if condition.ndim != len(wanted) or len(condition) != num:
                sizes = ", ".join(["..."] * (len(wanted) - 1))
                raise ValueError(f"condition has shape {tuple(condition.shape)}; want ({num}, {sizes})")
            super().check_conditioning(num, shape, labels, lambda samples: condition)
        else:
            super().check_conditioning(num, shape, labels, condition)

    def check_known(self, known: Given) -> None:
        """Raises ValueError if the network predicts the next code and a first code isn't known."""
        if not self.lead or callable(known):
            return
        if known is None or bool((known[:, 0] < 0).any()):
            raise ValueError("known lacks first codes; want them, since this network predicts the next code")

    def on_grid(self, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """See ``CausalPrior``: as it is, on the network's device."""
        return condition.to(next(self.parameters()).device)

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``. If the network predicts the next code, the logits of the first code are 0."""
        logits = self.call(*self._inputs(codes, labels, condition).values())
        if self.lead:
            logits = torch.cat([torch.zeros_like(logits[:, :, :1]), logits[:, :, :-1]], dim=2)
        return logits if self.ndim == 2 else logits.unsqueeze(2)

    @torch.inference_mode(False)  # a program's weights are ordinary tensors
    @torch.no_grad()
    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``. Every new program is compared with the network."""
        if self.lowered is None or differing(self._state(), self.state) - self.volatile:
            self._forget()
            self.lowered = self._lowered_anew()
            self._verify(self._random_inputs(self.shape, _TRACED_BATCH))
        return self.lowered.program, self.lowered.weights

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """See ``CausalPrior``: everything that differs by position and doesn't depend on the codes.

        At a new shape, the program is compared with the network before it is used.
        """
        inputs = self._inputs(codes, labels, condition)
        if self._key(inputs) not in self.verified:
            self._verify_shape(tuple(inputs["codes"].shape[1 : 1 + self.ndim]), condition)
        return self._maps(inputs)

    # As files

    def frozen(self) -> ProgramPrior:
        """The program with the present weights, without the network.

        Raises:
            ValueError: maps that the program reads depend on labels or a condition.
        """
        program, weights = self.lower()
        inputs = self._random_inputs(self.shape, 1)
        maps, nodes = self._maps(inputs), list(self._graph(inputs).nodes)
        read = needed_by([nodes[made.index] for made in self._maps_of(inputs) if made.index >= 0])
        if any(node.op == "placeholder" for node in read - {nodes[0]}):
            raise ValueError("the program needs the network for its condition, which files don't hold")
        prior = ProgramPrior(
            self.num_embeddings,
            described(program),
            {name: tensor.shape for name, tensor in weights.items()},
            ndim=self.ndim,
            num_quantizers=self.num_quantizers,
            num_mixtures=self.num_mixtures,
            num_classes=self.num_classes,
            shape=self.shape if maps is not None or not self.any_shape else None,
            map_channels=0 if maps is None else maps.shape[1],
            first_known=bool(self.lead),
        ).to(next(iter(weights.values())))
        with torch.no_grad():
            for parameter, tensor in zip(prior.tensors, weights.values(), strict=True):
                parameter.copy_(tensor)
            if maps is not None and prior.kept_map is not None:
                prior.kept_map.copy_(maps[0])
        return prior.eval()

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes what ``frozen`` returns; ``ProgramPrior.from_pretrained`` loads it."""
        self.frozen().save_pretrained(folder, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Writes what ``frozen`` returns to the Hub; ``ProgramPrior.from_pretrained`` loads it."""
        return self.frozen().push_to_hub(repo_id, **options)

    # Inputs of the network

    def _inputs(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> dict[str, Tensor]:
        """The arguments of ``call`` by name, in order; codes as the network takes them."""
        codes = codes if codes.ndim == 1 + self.ndim + len(axes_of(self)) else codes[:, 0]
        given = {"codes": codes, "labels": labels, "condition": condition}
        return {name: value for name, value in given.items() if value is not None}

    def _random_inputs(
        self, shape: tuple[int, ...], batch: int, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Random codes and labels, the highest ones among them, and the condition or the example."""
        device, generator = next(self.parameters()).device, torch.Generator().manual_seed(batch)
        size = (batch, *shape, *axes_of(self))
        codes = torch.randint(self.num_embeddings, size, generator=generator)
        codes.view(-1)[-1] = self.num_embeddings - 1
        labels = (
            (self.num_classes - 1 - 7 * torch.arange(batch)) % self.num_classes if self.num_classes else None
        )
        some = self.example if condition is None else condition
        if some is not None:  # another one for each sample
            some = torch.cat([some[i % len(some)][None].roll(i, -1) for i in range(batch)])
            if condition is None and some.is_floating_point():
                some = some.to(next(self.parameters()).dtype)
        inputs = self._inputs(codes, labels, some)
        return {name: value.to(device) for name, value in inputs.items()}

    def _key(self, inputs: dict[str, Tensor]) -> tuple[tuple[int, ...], ...]:
        """The shapes for which a program is compared with the network: those of the inputs of a sample."""
        return tuple(tuple(value.shape[1:]) for value in inputs.values())

    def _state(self) -> State:
        """Everything that a program depends on; also the constants of the graph that it was made of."""
        graphs = list(self.graphs.values())[:1]
        found = {f"constant {i}": each for graph in graphs for i, each in enumerate(constants(graph))}
        return state_of(self.call) | found

    # The program

    def _graph(self, inputs: dict[str, Tensor]) -> fx.Graph:
        """The network's graph for inputs of such shapes. The lowered one and the last two are kept."""
        key = tuple(inputs["codes"].shape)
        if key not in self.graphs:
            # A network may mask its weights in place, which is no part of the trace.
            self.call(*inputs.values())
            try:
                self.graphs[key] = trace(self.call, tuple(inputs.values()))
            except Exception as error:
                raise ValueError(f"the network can't be traced: {error}") from error
            while len(self.graphs) > _KEPT_GRAPHS:
                self.other_maps.pop(self.graphs.pop(list(self.graphs)[1]), None)
        return self.graphs[key]

    def _lowered(self, inputs: dict[str, Tensor]) -> Lowered:
        """The network's program, by its graph for these inputs."""
        sizes = self.num_embeddings, self.num_classes, self.num_quantizers, self.num_mixtures
        return lowered(self._graph(inputs), inputs, *sizes, self.lead)

    def _maps_of(self, inputs: dict[str, Tensor]) -> list[Map]:
        """What the program's condition is made of, by the network's graph for inputs of such shapes."""
        assert self.lowered is not None
        graph, like = self._graph(inputs), next(iter(self.graphs.values()))
        if [node.target for node in graph.nodes] == [node.target for node in like.nodes]:
            return self.lowered.maps
        if (found := self.other_maps.get(graph)) is None:
            other = self._lowered(inputs)
            if not same_steps(other.program, self.lowered.program):
                raise ValueError("the network does other operations for another batch or shape")
            found = self.other_maps[graph] = other.maps
        return found

    def _lowered_anew(self) -> Lowered:
        inputs = self._random_inputs(self.shape, _TRACED_BATCH)
        self._graph(inputs)
        try:
            return self._lowered(inputs)
        except ValueError as error:
            if 1 not in self.shape or (larger := self._lowered_larger()) is None:
                raise self._refusal(error) from None
            return larger

    def _lowered_larger(self) -> Lowered | None:
        """The program by the network's graph at a larger shape, where no axis has a single position."""
        self.graphs.clear()
        try:
            return self._lowered(self._random_inputs(tuple(n + 2 for n in self.shape), _TRACED_BATCH))
        except Exception:  # of the network, of any kind
            self.graphs.clear()
            return None

    def _refusal(self, error: ValueError) -> ValueError:
        """The error of lowering, with what was seen of later codes."""
        seen = self._later_code_seen()
        if isinstance(error, NotCausal):
            return ValueError(f"the network isn't causal: {'; '.join(filter(None, (str(error), seen)))}")
        return ValueError(f"the network isn't causal: {seen}\n{error}") if seen else error

    def _later_code_seen(self) -> str | None:
        codes, *others = self._random_inputs(self.shape, _TRACED_BATCH).values()
        lead = self.lead * math.prod(axes_of(self))
        return later_code_seen(self.call, codes, others, self.num_embeddings, lead, self.ndim)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _maps(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """The program's map, ``(B, C, H, W)``."""
        if self.lowered is None or not self.lowered.maps:
            return None
        nodes, maps = list(self._graph(inputs).nodes), self._maps_of(inputs)
        grid = [1, *inputs["codes"].shape[1 : 1 + self.ndim]][-2:]
        example = next(iter(self.lowered.weights.values()))
        return map_of(maps, nodes, tuple(inputs.values()), grid).to(example.dtype)

    # Verification

    @torch.no_grad()
    def _difference(self, inputs: dict[str, Tensor]) -> float:
        """How far the program's log-probabilities of codes are from the network's, in tolerances."""
        assert self.lowered is not None
        (batch, *shape), labels, condition = (
            inputs["codes"].shape,
            inputs.get("labels"),
            inputs.get("condition"),
        )
        codes = inputs["codes"].view(batch, *([1, *shape[: self.ndim]][-2:]), *axes_of(self))
        expected = self.grid_logits(codes, labels, condition)
        program, weights = self.lowered.program, self.lowered.weights
        logits = parallel.logits(program, weights, codes, labels, self._maps(inputs))
        first = self.lead * math.prod(axes_of(self))
        expected, logits = (each.flatten(2)[..., first:] for each in (expected, logits))
        a, b, compared = expected, logits, torch.ones_like(expected, dtype=torch.bool)
        if self.num_mixtures is None:
            a, b = expected.log_softmax(1), logits.log_softmax(1)
            compared = ~((a < _NEVER_DRAWN) & (b < _NEVER_DRAWN))  # so that a mask's -1e9 sets no scale
        if not compared.any():
            return 0.0
        tolerance = _TOLERANCE[expected.dtype] * max(1, float(expected[compared].abs().max()))
        return float((a - b).abs().where(compared & (a != b), 0).max()) / tolerance

    @torch.inference_mode(False)
    def _verify(self, inputs: dict[str, Tensor]) -> None:
        """Compares the program with the network, and finds what the network writes into itself.

        Raises:
            ValueError: the program isn't the network for these inputs.
        """
        before = kept(self._state())
        difference = self._difference(inputs)
        now = self._state()
        self.volatile |= differing(now, before)
        self.state = self.state or kept(now)
        if not difference <= 1:  # also if it is NaN
            batch, *shape = inputs["codes"].shape
            seen = self._later_code_seen() or "no output was seen to depend on a later code"
            raise ValueError(
                f"the program isn't the network: its log-probabilities for {batch} samples of shape "
                f"{tuple(shape)} differ by {difference:.3g} times the tolerance; {seen}"
            )
        self.verified.add(self._key(inputs))

    def _verify_shape(self, shape: tuple[int, ...], condition: Tensor | None) -> None:
        """Compares the program with the network at a shape.

        Raises:
            ValueError: the network doesn't take it, or the program isn't the network there.
        """
        batch = _OTHER_BATCH if math.prod(shape) < _LARGE_GRID else 1
        inputs = self._random_inputs(shape, batch, condition)
        try:
            self._verify(inputs)
        except Exception as error:  # of the network, of any kind
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            raise ValueError(
                f"shape is {shape}; want {self.shape}, that of program_of, or another at which the same "
                f"program is the network: {error}"
            ) from error

    def _takes_another_shape(self) -> bool:
        """Compares the program with the network at a second shape and batch size, if the network takes it."""
        shape = tuple((n if n < 8 else n // 2) + i + 1 for i, n in enumerate(self.shape))
        try:
            self._verify_shape(shape, None)
        except ValueError:
            self._verify(self._random_inputs(self.shape, _OTHER_BATCH))
            return False
        return True
