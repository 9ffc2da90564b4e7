"""A sampling program as a prior: what remains of a traced network when the network itself is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vqfast.checks import check_integer
from vqfast.priors.base import CausalPrior
from vqfast.sampling import parallel
from vqfast.sampling.attention import Attention
from vqfast.sampling.program import CONDITION, AnyStep, Program, Step, Term
from vqfast.sampling.request import Given, GivenLabels
from vqfast.saving.models import loadable

_STEPS: dict[str, type[AnyStep]] = {cls.__name__: cls for cls in (Step, Attention)}


@loadable
class ProgramPrior(CausalPrior):
    """A prior whose network is a sampling program: what ``save_pretrained`` keeps of ``program_of``'s prior.

    It samples and tells likelihoods as the network did, and needs none of the network's code. Its parameters
    are the program's weights, all of which count: masks and constants are part of them.

    Args:
        num_embeddings: K, the number of codes.
        steps: of the program, see ``described``.
        weights: the shape of each tensor that the steps name.
        ndim: axes of a grid of codes, 1 or 2.
        num_quantizers, num_mixtures, num_classes: see ``program_of``; ``None`` for none.
        shape: the only shape of a grid that the program is for, or ``None`` for any.
        map_channels: channels of the map that the program reads, which is kept with the weights; 0 for none.
        first_known: whether first codes have to be known, since the network predicts the next code.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or steps and weights don't fit each other.

    Example:
        >>> import tempfile
        >>> from vqfast.priors import ProgramPrior
        >>> table = torch.nn.Embedding(16, 16)  # logits by the code to the left
        >>> def network(codes):
        ...     return table(torch.nn.functional.pad(codes, (1, 0))[:, :, :-1]).movedim(3, 1)
        >>> prior = vqfast.program_of(network, num_embeddings=16, shape=(4, 6))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prior.save_pretrained(folder)
        ...     found = ProgramPrior.from_pretrained(folder)
        >>> torch.equal(found.sample(3, (4, 6), seed=1), prior.sample(3, (4, 6), seed=1))
        True
    """

    kept_map: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        steps: Sequence[Mapping[str, Any]],
        weights: Mapping[str, Sequence[int]],
        *,
        ndim: int = 2,
        num_quantizers: int | None = None,
        num_mixtures: int | None = None,
        num_classes: int | None = None,
        shape: Sequence[int] | None = None,
        map_channels: int = 0,
        first_known: bool = False,
    ) -> None:
        super().__init__(num_embeddings, num_classes, condition_channels=0)
        check_integer("ndim", ndim, 1, 2)
        check_integer("map_channels", map_channels, 0)
        self.ndim, self.num_quantizers, self.num_mixtures = ndim, num_quantizers, num_mixtures
        self.shape = None if shape is None else tuple(shape)
        self.map_channels, self.first_known = map_channels, first_known
        self.program = Program(
            tuple(map(_step, steps)), num_embeddings, num_quantizers or 1, num_mixtures or 0
        )
        self.names = list(weights)
        self.tensors = nn.ParameterList(nn.Parameter(torch.zeros(*size)) for size in weights.values())
        kept = None if self.shape is None or not map_channels else torch.zeros(map_channels, *self._grid)
        self.register_buffer("kept_map", kept)
        for name, got, wanted in self._sizes():
            if got != wanted:
                raise ValueError(f"weight {name} has shape {got}; want {wanted}, which its step needs")

    @property
    def _grid(self) -> tuple[int, int]:
        """The only grid, with one row for sequences."""
        height, width = (1, *(self.shape or ()))[-2:]
        return height, width

    @property
    def config(self) -> dict[str, object]:
        """See ``CausalPrior``."""
        names = ("ndim", "num_quantizers", "num_mixtures", "map_channels", "first_known")
        return {
            "num_embeddings": self.num_embeddings,
            "num_classes": self.num_classes,
            "steps": described(self.program),
            "weights": {name: list(tensor.shape) for name, tensor in self._weights.items()},
            "shape": None if self.shape is None else list(self.shape),
            **{name: getattr(self, name) for name in names},
        }

    @property
    def _weights(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.tensors, strict=True))

    def lower(self) -> tuple[Program, dict[str, Tensor]]:
        """See ``CausalPrior``."""
        return self.program, {name: tensor.detach() for name, tensor in self._weights.items()}

    def grid_logits(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """See ``CausalPrior``. If first codes have to be known, their logits are 0."""
        given = self.condition_map(codes, labels, condition)
        logits = parallel.logits(self.program, self._weights, codes, labels, given)
        if self.first_known:
            logits = torch.cat([torch.zeros_like(logits[:, :, :, :1]), logits[:, :, :, 1:]], dim=3)
        return logits

    def condition_map(self, codes: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """See ``CausalPrior``: the map that is kept with the weights."""
        return None if self.kept_map is None else self.kept_map.expand(len(codes), *self.kept_map.shape)

    def check_known(self, known: Given) -> None:
        """Raises ValueError if first codes have to be known and one isn't."""
        if self.first_known and not callable(known) and (known is None or bool((known[:, 0] < 0).any())):
            raise ValueError("known lacks first codes; want them, since this network predicts the next code")

    def check_conditioning(
        self, num: int, shape: tuple[int, ...], labels: GivenLabels, condition: Given
    ) -> None:
        """See ``CausalPrior``; also checks that the program is for grids of that shape."""
        super().check_conditioning(num, shape, labels, condition)
        if self.shape is not None and shape != self.shape:
            raise ValueError(f"shape is {shape}; want {self.shape}, the only one that this program is for")

    def _sizes(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Name, shape, and the shape that its step needs, of each weight that a step names."""
        channels = {CONDITION: self.map_channels, **dict.fromkeys(self.program.codes, self.num_embeddings)}
        if CONDITION in _sources(self.program) and self.kept_map is None:
            raise ValueError("the program reads a map, and shape or map_channels says that there is none")
        for number, step in enumerate(self.program.steps):
            wanted: list[tuple[str, tuple[int, ...]]] = [
                (term.weight, (len(term.taps), channels[term.source], step.width))
                for term in step.terms
                if term.weight is not None
            ]
            wanted += [(step.bias, (step.width,))] if step.bias is not None else []
            if step.label_bias is not None:
                wanted.append((step.label_bias, (self.num_classes or 0, step.width)))
            for name, size in wanted:
                if name not in self.names:
                    raise ValueError(f"step {number} names {name!r}, which isn't in weights")
                yield name, tuple(self._weights[name].shape), size
            channels[number] = step.channels


def _sources(program: Program) -> set[int]:
    return {term.source for step in program.steps for term in step.terms}


def described(program: Program) -> list[dict[str, Any]]:
    """The steps of a program as JSON: the fields of each, and its kind.

    >>> from vqfast.sampling import CODES, Program, Step, Term
    >>> step = Step((Term(CODES, ((0, -1),), "left"),), width=8)
    >>> described(Program((step,), num_embeddings=8))[0]["terms"]
    [{'source': -2, 'taps': [[0, -1]], 'weight': 'left'}]
    """
    steps = [{"kind": type(step).__name__, **asdict(step)} for step in program.steps]
    return [{name: _listed(value) for name, value in step.items()} for step in steps]


def _listed(value: Any) -> Any:
    """Lists in place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, (list, tuple)) else value


def _step(description: Mapping[str, Any]) -> AnyStep:
    """The step that ``described`` describes."""
    fields = dict(description)
    kind = _STEPS[fields.pop("kind")]
    if "terms" in fields:
        fields["terms"] = tuple(_term(term) for term in fields["terms"])
    return kind(**fields)


def _term(fields: Mapping[str, Any]) -> Term:
    taps = tuple((int(dy), int(dx)) for dy, dx in fields["taps"])
    return Term(**{**fields, "taps": taps})
