"""Builds a sampling program and the weights that it names, step by step."""

from __future__ import annotations

from torch import Tensor

from vqfast.nn.masked_conv import MaskedConv2d
from vqfast.sampling.attention import Attention
from vqfast.sampling.program import AnyStep, Program, Step, Term


class ProgramBuilder:
    """Collects the steps of a program and their weights.

    >>> builder = ProgramBuilder()
    >>> left = vqfast.MaskedConv2d(8, 4, 3, stack="horizontal")  # of one-hot codes
    >>> term = builder.conv(vqfast.sampling.CODES, left)
    >>> hidden = builder.add(term, width=4, bias=left.bias, activation="relu")
    >>> logits = builder.pointwise(hidden, vqfast.MaskedConv2d(4, 8, 1, mask_type="B"))
    >>> program, weights = builder.program(num_embeddings=8)
    >>> program.steps[0].terms[0].taps
    ((0, -1),)
    >>> {name: tuple(weight.shape) for name, weight in weights.items()}
    {'w0': (1, 8, 4), 'w1': (4,), 'w2': (1, 4, 8), 'w3': (8,)}
    """

    def __init__(self) -> None:
        self.steps: list[AnyStep] = []
        self.weights: dict[str, Tensor] = {}

    def keep(self, tensor: Tensor) -> str:
        """Keeps a weight and returns its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = tensor.detach()
        return name

    def conv(self, source: int, module: MaskedConv2d) -> Term:
        """The term of a masked convolution of ``source``, without its bias."""
        return Term(source, tuple(module.offsets()), self.keep(module.matrix()))

    def dense(self, source: int, weight: Tensor) -> Term:
        """The term of a 1x1 convolution of ``source`` by ``weight (out, in, ...)``.

        An embedding is one of the one-hot codes by its transposed table.
        """
        return Term(source, weight=self.keep(weight.flatten(1).T.unsqueeze(0)))

    def add(
        self,
        *terms: Term,
        width: int,
        bias: Tensor | None = None,
        label_bias: Tensor | None = None,
        activation: str = "none",
        residual: int | None = None,
        stride: int = 1,
    ) -> int:
        """Appends a step, see ``Step``, and returns its number."""
        bias_name = None if bias is None else self.keep(bias)
        label_name = None if label_bias is None else self.keep(label_bias)
        self.steps.append(Step(terms, width, bias_name, label_name, activation, residual, stride))
        return len(self.steps) - 1

    def attend(self, query: int, key: int, value: int, *, heads: int, scale: float, own: bool) -> int:
        """Appends an attention, see ``Attention``, and returns its number."""
        width = self.steps[value].channels
        self.steps.append(Attention(query, key, value, width, heads, scale, own))
        return len(self.steps) - 1

    def pointwise(
        self, source: int, conv: MaskedConv2d, activation: str = "none", residual: int | None = None
    ) -> int:
        """Appends a 1x1 convolution of ``source`` and returns its number."""
        term = self.dense(source, conv.weight)
        return self.add(
            term, width=len(conv.weight), bias=conv.bias, activation=activation, residual=residual
        )

    def program(
        self, num_embeddings: int, num_quantizers: int = 1, num_mixtures: int = 0, condition_stride: int = 1
    ) -> tuple[Program, dict[str, Tensor]]:
        """The program of the steps collected so far, and its weights."""
        program = Program(tuple(self.steps), num_embeddings, num_quantizers, num_mixtures, condition_stride)
        return program, self.weights
