"""Any causal network as a prior: it is traced, lowered to a program, and compared with the program."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from vqfast.checks import check_choice, check_integer, check_tensor
from vqfast.priors.base import CausalPrior
from vqfast.priors.calls import check_call, modules_of
from vqfast.priors.causality import later_code_seen
from vqfast.priors.frozen import ProgramPrior, described
from vqfast.sampling import parallel
from vqfast.sampling.batches import axes_of
from vqfast.sampling.program import Program
from vqfast.sampling.request import Given, GivenLabels
from vqfast.sampling.trace.fuse import NotCausal
from vqfast.sampling.trace.graph import constants, evaluate, trace
from vqfast.sampling.trace.layout import by_position, shape_of
from vqfast.sampling.trace.lower import Lowered, lowered

# of log-probabilities, relative to the largest logit
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.25}
_NEVER_DRAWN = -50.0  # a log-probability
_TRACED_BATCH, _VERIFIED_BATCH = 2, 3
_KEPT_GRAPHS = 3


class TracedPrior(CausalPrior):
    """A causal network of any make, sampled as a program. ``program_of`` makes it.

    Its ``forward`` is the network's. When the network's weights have changed, it is lowered again.
    """

    call: Callable[..., Tensor]
    lowered: Lowered

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
        self.graphs: dict[tuple[int, ...], fx.Graph] = {}
        self.lowered_modes: list[bool] = []  # training or evaluation, of each module when it was lowered
        self.lowered_tensors: list[Tensor] = []  # copies of the network's tensors when it was lowered
        check_call(call, self._random_inputs(shape, _TRACED_BATCH), num_embeddings, num_classes, num_mixtures)
        self.lower()
        other_shape = tuple(n + i + 1 for i, n in enumerate(shape))
        self.any_shape = condition is None and self._runs_at(other_shape)
        if not self.any_shape:
            self._verify(self.shape, _VERIFIED_BATCH)

    def condition_shape(self, num: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """See ``CausalPrior``: that of the example."""
        return None if self.example is None else (num, *self.example.shape[1:])

    def check_conditioning(
        self, num: int, shape: tuple[int, ...], labels: GivenLabels, condition: Given
    ) -> None:
        """See ``CausalPrior``; also checks that the network takes the shape."""
        super().check_conditioning(num, shape, labels, condition)
        if shape != self.shape and not self.any_shape:
            raise ValueError(
                f"shape is {shape}; want {self.shape}, the only one that this network was seen to take"
            )

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
        if self._changed():
            self.graphs.clear()
            self.lowered = self._lowered_anew()
            self._verify(self.shape, _TRACED_BATCH)
            self.lowered_modes = self._modes()
            self.lowered_tensors = [tensor.detach().clone() for tensor in self._tensors()]
        return self.lowered.program, self.lowered.weights

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """See ``CausalPrior``: everything that differs by position and doesn't depend on the codes."""
        return self._maps(self._inputs(codes, labels, condition))

    # As files

    def frozen(self) -> ProgramPrior:
        """The program with the present weights, without the network.

        Raises:
            ValueError: maps that the program reads depend on labels or a condition.
        """
        program, weights = self.lower()
        maps = self._maps(self._random_inputs(self.shape, _VERIFIED_BATCH))
        if self.example is not None or (maps is not None and not torch.equal(maps, maps[:1].expand_as(maps))):
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

    def _random_inputs(self, shape: tuple[int, ...], batch: int) -> dict[str, Tensor]:
        """Random codes and labels, the highest ones among them, and the example."""
        device, generator = next(self.parameters()).device, torch.Generator().manual_seed(batch)
        size = (batch, *shape, *axes_of(self))
        codes = torch.randint(self.num_embeddings, size, generator=generator)
        codes.view(-1)[-1] = self.num_embeddings - 1
        labels = (
            (self.num_classes - 1 - 7 * torch.arange(batch)) % self.num_classes if self.num_classes else None
        )
        example = None if self.example is None else self.example[:1].expand(batch, *self.example.shape[1:])
        inputs = self._inputs(codes, labels, None if example is None else example.clone())
        return {name: value.to(device) for name, value in inputs.items()}

    # Has the network changed?

    def _tensors(self) -> list[Tensor]:
        """Everything of the network that a program depends on."""
        lowered = list(self.graphs.values())[:1]
        found = [*self.parameters(), *self.buffers(), *(t for graph in lowered for t in constants(graph))]
        return list({id(tensor): tensor for tensor in found}.values())

    def _modes(self) -> list[bool]:
        return [module.training for module in self.networks.modules()]

    def _changed(self) -> bool:
        """Whether tensors or modes differ from the lowered ones; writes to ``.data`` count no version up."""
        now = self._tensors()
        return (
            self.lowered_modes != self._modes()
            or len(now) != len(self.lowered_tensors)
            or any(
                (new.dtype, new.device) != (old.dtype, old.device) or not torch.equal(new, old)
                for new, old in zip(now, self.lowered_tensors, strict=True)
            )
        )

    # The program

    def _graph(self, inputs: dict[str, Tensor]) -> fx.Graph:
        """The network's graph for inputs of such shapes. The lowered one and the last two are kept."""
        key = tuple(inputs["codes"].shape)
        if key not in self.graphs:
            self.call(
                *inputs.values()
            )  # a network may mask its weights in place, which is no part of the trace
            try:
                self.graphs[key] = trace(self.call, tuple(inputs.values()))
            except Exception as error:
                raise ValueError(f"the network can't be traced: {error}") from error
            while len(self.graphs) > _KEPT_GRAPHS:
                del self.graphs[list(self.graphs)[1]]
        return self.graphs[key]

    def _lowered_anew(self) -> Lowered:
        inputs = self._random_inputs(self.shape, _TRACED_BATCH)
        graph = self._graph(inputs)
        try:
            sizes = self.num_embeddings, self.num_classes, self.num_quantizers, self.num_mixtures
            return lowered(graph, inputs, *sizes, self.lead)
        except NotCausal as error:
            reasons = filter(None, (str(error), self._later_code_seen()))
            raise ValueError(f"the network isn't causal: {'; '.join(reasons)}") from None
        except ValueError as error:
            if seen := self._later_code_seen():
                raise ValueError(f"the network isn't causal: {seen}\n{error}") from None
            raise

    def _later_code_seen(self) -> str | None:
        codes, *others = self._random_inputs(self.shape, _TRACED_BATCH).values()
        lead = self.lead * math.prod(axes_of(self))
        return later_code_seen(self.call, codes, others, self.num_embeddings, lead, self.ndim)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _maps(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """The program's map, ``(B, C, H, W)``."""
        if not self.lowered.maps:
            return None
        lowered = list(next(iter(self.graphs.values())).nodes)
        nodes = list(self._graph(inputs).nodes)
        if [node.target for node in nodes] != [node.target for node in lowered]:
            raise ValueError(
                "the network does other operations for another batch or shape; want the same ones"
            )
        height, width = [1, *inputs["codes"].shape[1 : 1 + self.ndim]][-2:]
        sizes = {"b": len(inputs["codes"]), "y": height, "x": width}
        values = evaluate([nodes[made.index] for made in self.lowered.maps], tuple(inputs.values()))
        parts = []
        for made, value in zip(self.lowered.maps, values, strict=True):
            if made.tap is not None:
                ones = torch.ones(*sizes.values(), 1, device=inputs["codes"].device)
                parts.append(parallel.shifted(ones, made.tap))
                continue
            layout = tuple(tuple((axis, sizes.get(axis, n)) for axis, n in dim) for dim in made.layout)
            parts.append(by_position(value.expand(shape_of(layout)), layout))
        weight = next(iter(self.lowered.weights.values()))
        return torch.cat(parts, dim=3).movedim(3, 1).to(weight.dtype)

    # Verification

    @torch.no_grad()
    def _difference(self, shape: tuple[int, ...], batch: int) -> float:
        """How far the program's log-probabilities of random codes are from the network's, in tolerances."""
        inputs = self._random_inputs(shape, batch)
        codes = inputs["codes"].view(batch, *([1, *shape][-2:]), *axes_of(self))
        labels, condition = inputs.get("labels"), inputs.get("condition")
        expected = self.grid_logits(codes, labels, condition)
        program, weights = self.lowered.program, self.lowered.weights
        logits = parallel.logits(program, weights, codes, labels, self._maps(inputs))
        first = self.lead * math.prod(axes_of(self))
        expected, logits = (each.flatten(2)[..., first:] for each in (expected, logits))
        a, b, compared = expected, logits, torch.ones_like(expected, dtype=torch.bool)
        if self.num_mixtures is None:
            a, b = expected.log_softmax(1), logits.log_softmax(1)
            compared = ~((a < _NEVER_DRAWN) & (b < _NEVER_DRAWN))  # so that a mask's -1e9 sets no scale
        tolerance = _TOLERANCE[expected.dtype] * max(1, float(expected[compared].abs().max()))
        return float((a - b).abs().where(compared & (a != b), 0).max()) / tolerance

    def _verify(self, shape: tuple[int, ...], batch: int) -> None:
        """Raises ValueError unless the program is the network for random codes."""
        difference = self._difference(shape, batch)
        if not difference <= 1:  # also if it is NaN
            seen = self._later_code_seen() or "no output was seen to depend on a later code"
            raise ValueError(
                f"the program isn't the network: its log-probabilities for {batch} samples of shape {shape} "
                f"differ by {difference:.3g} times the tolerance; {seen}"
            )

    def _runs_at(self, shape: tuple[int, ...]) -> bool:
        """Whether the network takes this shape, and the program is the network there."""
        try:
            return self._difference(shape, _VERIFIED_BATCH) <= 1
        except Exception:  # of the network, of any kind
            return False


def program_of(
    call: Callable[..., Tensor],
    num_embeddings: int,
    shape: tuple[int, ...],
    *,
    num_quantizers: int | None = None,
    num_mixtures: int | None = None,
    num_classes: int | None = None,
    condition: Tensor | None = None,
    predicts: str = "own",
) -> TracedPrior:
    """Makes a prior of any causal network, which is then sampled fast.

    The network is traced, and its operations are turned into a sampling program. The program is compared with
    the network on random codes, for two batch sizes and, if the network takes it, another shape. The weights
    may change afterwards: the next sample is drawn with the new ones.

    Args:
        call: a module in evaluation mode, or a function that uses one. ``call(codes)`` returns logits or
            log-probabilities ``(B, num_embeddings, *shape)`` of int64 codes ``(B, *shape)``. Its further
            arguments are int64 labels ``(B,)`` if there are classes, and the condition if there is one.
        num_embeddings: K, the number of codes.
        shape: of a grid of codes, ``(H, W)`` or ``(T,)``.
        num_quantizers: S, how many codes each position has, as an image's colours or residual codes; ``None``
            for one. Codes are then ``(B, *shape, S)`` and logits ``(B, num_embeddings, *shape, S)``, and the
            logits of a code may depend on the position's codes before it.
        num_mixtures: M, if the network doesn't return logits, but ``(B, 3 M, *shape)``: log-weights, means
            and log-scales of M logistic distributions. Code ``c`` then stands for the value
            ``2 c / (num_embeddings - 1) - 1``, and a draw is rounded to the nearest one.
        num_classes: number of class labels; ``None`` if the network takes no labels.
        condition: an example ``(1, ...)`` of another argument of the network; ``None`` if it takes none.
        predicts: ``"own"`` if the logits at a position are for the code there. ``"next"`` if they are for the
            next code of a sequence; then samples need their first code as ``known``.

    Returns:
        A prior with all that ``PixelCNN`` can do. Its ``forward`` is the network's.

    Raises:
        TypeError: an argument has the wrong type, ``call`` uses no module with weights, or it doesn't return
            a tensor.
        ValueError: an argument is out of range; the network fails or returns another shape; it isn't causal;
            it has operations that no program has, all of which are listed with their lines; or the program
            isn't the network.

    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embedding = torch.nn.Embedding(8, 16)
    ...         self.above = torch.nn.Conv2d(16, 16, (2, 3))
    ...         self.head = torch.nn.Conv2d(16, 8, 1)
    ...
    ...     def forward(self, codes):
    ...         x = self.embedding(codes).permute(0, 3, 1, 2)
    ...         x = torch.nn.functional.pad(x, (1, 1, 2, 0))[:, :, :-1]  # the two rows above
    ...         return self.head(self.above(x).relu())
    >>> prior = vqfast.program_of(Network().eval(), num_embeddings=8, shape=(6, 6))
    >>> codes = prior.sample(4, (6, 6), temperature=0.9)
    >>> codes.shape
    torch.Size([4, 6, 6])
    >>> torch.equal(codes, prior.sample(4, (6, 6), temperature=0.9, method="reference"))
    True
    """
    check_integer("num_embeddings", num_embeddings)
    check_integer("num_quantizers", num_quantizers, optional=True)
    check_integer("num_mixtures", num_mixtures, optional=True)
    if not callable(call) or not any(list(module.parameters()) for module in modules_of(call)):
        raise TypeError(f"call is {call!r}; want a module with weights, or a function that uses one")
    if not isinstance(shape, (tuple, list, torch.Size)):
        raise TypeError(f"shape is {shape!r}; want (H, W) or (T,)")
    shape = tuple(shape)
    for size in shape:
        check_integer(f"a size of shape {shape}", size)
    if len(shape) not in (1, 2):
        raise ValueError(f"shape is {shape}; want (H, W) or (T,)")
    check_choice("predicts", predicts, ("own", "next"))
    if predicts == "next" and len(shape) == 2:
        raise ValueError("predicts is 'next'; want 'own' for grids of two dimensions")
    if condition is not None and check_tensor("condition", condition).ndim == 0:
        raise ValueError("condition has shape (); want (1, ...), an example")
    return TracedPrior(
        call,
        num_embeddings,
        shape,
        num_quantizers=num_quantizers,
        num_mixtures=num_mixtures,
        num_classes=num_classes,
        condition=condition,
        predicts=predicts,
    )
